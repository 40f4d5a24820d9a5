"""Memory and time that a run will take, and what to change where it cannot fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.findings import Finding
from penchant.core.machine import Room, memory_total_bytes
from penchant.core.screen import gibibytes
from penchant.guards.estimate.proposals import Proposal, propose
from penchant.guards.estimate.times import Times, probe_times
from penchant.models.footprint import Sizes, footprint
from penchant.models.ways import divided
from penchant.training.kind import kind_of
from penchant.training.workload import Workload, count_work, measure_run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.core.target import Machine
    from penchant.models.rough_sizes import ModelSize
    from penchant.training.setup import Setup


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
            what=f"the run would take {gibibytes(self.needed_bytes)} at its peak, of "
            f"{gibibytes(self.limit_bytes)} that can be had",
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
    config: RunConfig,
    setup: Setup,
    accelerator: Accelerator,
    *,
    timed: bool = True,
    num_processes: int | None = None,
    parts: int | None = None,
) -> RunEstimate:
    """Predict peak memory and time of a prepared run; nothing about it changes.

    Args:
        config, setup, accelerator: of the run.
        timed: probe the time too: a few forward and backward passes, and for methods that sample
            a few short answers, which their rewards judge.
        num_processes: that the run will have; default: those that are here.
        parts: into which these will divide weights that are whole here; None: they are as here.
    """
    sizes, room = measure_run(config, setup, accelerator)
    if num_processes is None:
        num_processes = accelerator.num_processes
    if parts is not None:
        sizes = divided(sizes, parts, offload=config.offload)
    work = partial(
        count_work,
        examples=setup.train_set,
        layout=setup.scorer.plan.layout,
        num_processes=num_processes,
        num_held_out=len(setup.eval_set),
    )
    times = Times({}, 0.0)
    if timed:
        times = probe_times(config, setup, accelerator, num_processes, parts or 1)
    return _estimate(
        config,
        sizes,
        room,
        work,
        times,
        checkpointing=setup.checkpointing,
        num_processes=num_processes,
    )


def estimate_unloaded(
    config: RunConfig,
    size: ModelSize,
    machine: Machine,
    examples: Sequence[Any],
    num_processes: int = 1,
    adapter_weights: int | None = None,
    parts: int | None = None,
    num_held_out: int = 0,
) -> RunEstimate:
    """Predict peak memory roughly, before the model is loaded.

    Args:
        config: of the run.
        size: of its model, as `measure_model` finds it.
        machine: as `find_machine` finds it.
        examples: tokenised, to train on.
        num_processes: that share the run; what one of them takes is predicted.
        adapter_weights: that are trained, where an adapter is not the usual one.
        parts: into which the processes divide the weights; None: each has all of them.
        num_held_out: records that the run is held against.
    """
    from penchant.models.rough_sizes import sizes_of  # a run that loads its model measures them

    precision = machine.precision if config.precision == "auto" else config.precision
    half_base = config.dtype in ("bf16", "fp16") or (
        config.lora_r > 0 and config.dtype == "auto" and precision == "bf16"
    )
    needs_reference = config.spec.needs_reference and config.spec.needs(config.options).reference
    beside = not config.lora_r or config.reference_model is not None
    sizes = sizes_of(
        size,
        lora_r=config.lora_r,
        half_base=half_base,
        reference=needs_reference and beside and config.reference != "cache",
        precision=precision,
        device=machine.device,
        num_models=1 + kind_of(config.spec).has_critic(config),
        frozen_dtype="fp32" if config.sync_ref_model else config.frozen_dtype,
        quantization=size.quantization if config.quantization == "none" else config.quantization,
        optim=config.optim,
        adapter_weights=adapter_weights,
    )
    if parts is not None:
        sizes = divided(sizes, parts, offload=config.offload)
    given = machine.given
    total = machine.memory_bytes if given else memory_total_bytes(torch.device(machine.device))
    engine = 0.0
    if config.spec.samples:
        from penchant.training.sampled_work import engine_bytes

        engine = engine_bytes(config, total, machine.device, num_processes)
    room = Room(0.0, machine.memory_bytes - engine, total)
    work = partial(
        count_work, examples=examples, num_processes=num_processes, num_held_out=num_held_out
    )
    return _estimate(
        config,
        sizes,
        room,
        work,
        Times({}, 0.0),
        checkpointing=config.gradient_checkpointing == "on",
        num_processes=num_processes,
    )


def _estimate(
    config: RunConfig,
    sizes: Sizes,
    room: Room,
    work: Callable[[RunConfig], Workload],
    times: Times,
    *,
    checkpointing: bool,
    num_processes: int,
) -> RunEstimate:
    counted = work(config)
    taken = footprint(sizes, counted.load(config, checkpointing=checkpointing))
    return RunEstimate(
        # Loading is over: what it took more than the run will is part of the process's peak.
        parts={**taken.parts, "loading": max(0.0, room.peak - taken.peak)},
        phases={**taken.totals, "loading": room.peak},
        limit_bytes=room.limit,
        memory_bytes=room.total,
        num_steps=counted.num_steps,
        times=times.training,
        evaluation_seconds=times.evaluation,
        proposals=propose(
            config,
            sizes,
            lambda changed, recomputed: work(changed).load(changed, checkpointing=recomputed),
            checkpointing=checkpointing,
            limit=room.limit,
            num_processes=num_processes,
        ),
    )
