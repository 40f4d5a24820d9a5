"""Memory and time that a run will take, and what to change where it cannot fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding
from penchant.guards.estimate.memory import Peak, foresee, ways
from penchant.guards.estimate.sizes import Footing, footing_without_weights, measure_footing
from penchant.guards.estimate.times import Times, probe_times
from penchant.guards.estimate.workload import Workload, count_work

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.core.machine import Machine
    from penchant.models.size import ModelSize
    from penchant.training.setup import Setup


@dataclass(frozen=True)
class Proposal:
    """A change of the configuration that takes less memory.

    Attributes:
        keys: to set, with their values.
        peak_bytes: predicted with them.
        fits: whether that can be had.
    """

    keys: Mapping[str, Any]
    peak_bytes: float
    fits: bool

    def describe(self) -> str:
        """The keys and what they bring, for people."""
        keys = ", ".join(f"{key}: {value}" for key, value in self.keys.items())
        return f"{keys} ({self.peak_bytes / 1e9:.2f} GB{'' if self.fits else ', too much too'})"


@dataclass(frozen=True)
class RunEstimate:
    """What a run is predicted to take.

    Attributes:
        parts: bytes by what they hold, at the moment when memory is highest.
        phases: peak bytes by phase of the run.
        limit_bytes: what can be had now, with room for fragmentation.
        memory_bytes: all that the machine has.
        num_steps: optimizer steps.
        times: seconds of training by part; empty where they were not measured.
        evaluation_seconds: of the evaluations beside the training.
        proposals: changes that take less memory, those that fit first.
    """

    parts: Mapping[str, float]
    phases: Mapping[str, float]
    limit_bytes: float
    memory_bytes: float
    num_steps: int
    times: Mapping[str, float] = field(default_factory=dict)
    evaluation_seconds: float = 0.0
    proposals: Sequence[Proposal] = ()

    @property
    def peak_bytes(self) -> float:
        """Of the process on a CPU, of the allocator on a GPU: as `memory_peak_bytes` of a run."""
        return sum(self.parts.values())

    @property
    def needed_bytes(self) -> float:
        """Peak of what is still to come: loading is over."""
        return max(size for phase, size in self.phases.items() if phase != "loading")

    @property
    def seconds(self) -> float | None:
        """Of training, as `train_seconds` of a run counts them; None where not measured."""
        return sum(self.times.values()) if self.times else None

    @property
    def fits(self) -> bool:
        """Whether the run can be had in the memory that is free now."""
        return self.needed_bytes <= self.limit_bytes

    @property
    def impossible(self) -> bool:
        """Whether no machine of this size could hold the run, whatever else it did."""
        return self.needed_bytes > self.memory_bytes

    def finding(self) -> Finding | None:
        """The refusal of a run that cannot fit; None for one that can."""
        if self.fits:
            return None
        best = self.proposals[0] if self.proposals else None
        if best is None:
            remedy = "use a smaller model, or a machine with more memory"
        else:
            remedy = f"set {best.describe()}"
            if not best.fits:
                remedy += "; that is still too much: use a smaller model or more memory"
        return Finding(
            id="memory",
            severity="error",
            what=f"the run would take {self.needed_bytes / 1e9:.2f} GB at its peak, of "
            f"{self.limit_bytes / 1e9:.2f} GB that can be had",
            remedy=remedy,
            evidence={
                "parts": {name: round(size) for name, size in self.parts.items() if size},
                "limit_bytes": round(self.limit_bytes),
                "memory_bytes": round(self.memory_bytes),
                "proposals": [
                    {"keys": dict(p.keys), "peak_bytes": round(p.peak_bytes), "fits": p.fits}
                    for p in self.proposals
                ],
            },
        )


def estimate_run(
    config: RunConfig, setup: Setup, accelerator: Accelerator, *, timed: bool = True
) -> RunEstimate:
    """Predict peak memory and time of a prepared run; nothing about it changes.

    Args:
        config, setup, accelerator: of the run.
        timed: probe the time too: a few forward and backward passes, and for methods that sample
            a few short answers, which their rewards judge.
    """
    footing = measure_footing(config, setup, accelerator)

    def work(changed: RunConfig) -> Workload:
        return count_work(changed, setup, accelerator)

    counted = work(config)
    times = probe_times(config, setup, accelerator) if timed else Times({}, 0.0)
    return _estimate(config, footing, work, counted, times, checkpointing=setup.checkpointing)


def estimate_unloaded(
    config: RunConfig, size: ModelSize, machine: Machine, *, tokens: int | None = None
) -> RunEstimate:
    """Predict peak memory roughly, before model and data are loaded.

    Args:
        config: of the run.
        size: of its model, as `advising.machine.measure_model` finds it.
        machine: as `advising.machine.find_machine` finds it.
        tokens: that a record lays out; default: as many as the limits allow.
    """
    footing = footing_without_weights(config, size, machine)

    def work(changed: RunConfig) -> Workload:
        answers = 2 if changed.spec.data == "pairs" else 1
        prompt = min(changed.prompt_budget, changed.max_length - 1)
        longest = prompt + answers * (changed.max_length - prompt)
        record = longest if tokens is None else min(tokens, longest)
        batch = changed.per_device_train_batch_size
        total = batch * record
        predicted = round(total * (longest - prompt) / longest)
        return Workload(changed.max_steps or 2, [total], 1, total, predicted)

    checkpointing = config.gradient_checkpointing == "on"
    return _estimate(
        config, footing, work, work(config), Times({}, 0.0), checkpointing=checkpointing
    )


def _estimate(
    config: RunConfig,
    footing: Footing,
    work: Callable[[RunConfig], Workload],
    counted: Workload,
    times: Times,
    *,
    checkpointing: bool,
) -> RunEstimate:
    peak = foresee(footing, config, counted, checkpointing=checkpointing)
    found = RunEstimate(
        parts=peak.parts,
        phases=peak.phases,
        limit_bytes=footing.limit,
        memory_bytes=footing.memory,
        num_steps=counted.num_steps,
        times=times.training,
        evaluation_seconds=times.evaluation,
    )
    return replace(found, proposals=_proposals(config, footing, work, found, checkpointing))


def _proposals(
    config: RunConfig,
    footing: Footing,
    work: Callable[[RunConfig], Workload],
    now: RunEstimate,
    checkpointing: bool,
) -> list[Proposal]:
    """Changes that lower the peak of what is to come; the gentlest that fits is first."""
    found = []
    for way in ways(config, footing, checkpointing=checkpointing):
        changed = config.model_copy(update=dict(way.keys))
        # Lengths of what is tokenised are known; shorter limits can only cut them in proportion.
        share = changed.max_length / config.max_length
        counted = _cut(work(changed), share)
        peak: Peak = foresee(way.footing, changed, counted, checkpointing=way.checkpointing)
        needed = max(size for phase, size in peak.phases.items() if phase != "loading")
        if needed < now.needed_bytes:
            found.append(Proposal(way.keys, needed, needed <= footing.limit))
    fitting = [p for p in found if p.fits]
    return fitting + sorted((p for p in found if not p.fits), key=lambda p: p.peak_bytes)


def _cut(work: Workload, share: float) -> Workload:
    if share >= 1:
        return work
    return replace(
        work, longest=round(work.longest * share), predicted=round(work.predicted * share)
    )
