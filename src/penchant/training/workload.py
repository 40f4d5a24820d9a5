"""How many tokens the passes of a run lay out, and so how much memory it takes.

All of it is known before the run starts, but for answers that are sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from penchant.core.machine import Room, find_room
from penchant.core.screen import gibibytes
from penchant.core.team import Team
from penchant.data.batch import laid_out
from penchant.models.footprint import Load, Sizes, footprint
from penchant.models.memory import measure_sizes
from penchant.training.accelerator import team_of
from penchant.training.kind import kind_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Layout
    from penchant.training.setup import Setup

logger = logging.getLogger("penchant")

# Steps that are counted one by one; a longer run is like them.
NUM_COUNTED = 2000


@dataclass(frozen=True)
class Workload:
    """The training passes of a run.

    Attributes:
        num_steps: optimizer steps.
        passes: tokens of each micro-batch of the first steps.
        num_counted: steps that `passes` are of.
        longest: tokens of the largest micro-batch.
        predicted: of these, where a token of an answer is predicted.
        num_processes: of the run; num_held_out: records that it is held against.
    """

    num_steps: int
    passes: Sequence[int]
    num_counted: int
    longest: int
    predicted: int
    num_processes: int = 1
    num_held_out: int = 0

    @property
    def num_passes(self) -> float:
        """Of the whole run."""
        return len(self.passes) / self.num_counted * self.num_steps

    @property
    def num_tokens(self) -> float:
        """Of the whole run."""
        return sum(self.passes) / self.num_counted * self.num_steps

    def load(self, config: RunConfig, *, checkpointing: bool) -> Load:
        """What the formula for memory asks of the passes of a run."""
        side_by_side = cached = 0
        if config.spec.samples:
            from penchant.training.sampled_work import answers_at_once

            side_by_side, cached = answers_at_once(
                config, self.longest, self.num_processes, self.num_held_out
            )
        return Load(
            tokens=self.longest,
            predicted=self.predicted,
            checkpointing=checkpointing,
            accumulates=len(self.passes) > self.num_counted,
            moments=self.num_steps > 1,
            side_by_side=side_by_side,
            cached=cached,
        )


def count_work(
    config: RunConfig,
    examples: Sequence[Any],
    *,
    layout: Layout = "shared",
    num_processes: int = 1,
    num_held_out: int = 0,
    answer_length: float | None = None,
) -> Workload:
    """The passes of a run, of the first of its processes.

    Args:
        config: of the run.
        examples: tokenised, to train on.
        layout: of its batches.
        num_processes: of the run.
        num_held_out: records that it is held against.
        answer_length: for methods that sample: expected tokens of an answer; default: the longest.
    """
    kind = kind_of(config.spec)
    if config.spec.samples:
        from penchant.training.sampled_work import sampled_passes

        num_steps = kind.num_steps(config, examples, num_processes)
        sampled = sampled_passes(config, examples, layout, answer_length, num_processes)
        return Workload(num_steps, *sampled, num_processes, num_held_out)
    source = kind.dataset(config, examples, layout=layout, team=Team(size=num_processes))
    num_counted = min(source.num_steps, NUM_COUNTED)
    groups = [
        kind.laid_out(some)
        for step in islice(source.steps(), num_counted)
        for some, weight in step.micro_batches
        if weight
    ]
    passes = [laid_out(some, layout=layout) for some in groups]
    return Workload(
        source.num_steps,
        passes,
        num_counted,
        max(passes),
        max(sum(len(c) for group in some for c in group.completions) for some in groups),
        num_processes,
        num_held_out,
    )


def measure_run(config: RunConfig, setup: Setup, accelerator: Accelerator) -> tuple[Sizes, Room]:
    """Sizes of what a run has loaded so far, and the memory that it finds.

    Weights, gradients and random numbers stay as they are.
    """
    groups = kind_of(config.spec).groups(config, setup.train_set)
    groups.sort(key=lambda group: group.num_tokens)
    room = find_room(accelerator.device)
    rewards = taught = 0
    if setup.collector is not None:
        teacher = setup.collector.teacher
        rewards = sum(setup.collector.rewards.held_bytes().values())
        taught = 0 if teacher is None else teacher.num_bytes
    with accelerator.autocast():
        sizes = measure_sizes(
            setup.scorer,
            groups[len(groups) // 4],
            room,
            reference=0 if setup.reference_cost is None else setup.reference_cost.num_bytes,
            rewards=rewards,
            teacher=taught,
            half=accelerator.mixed_precision in ("bf16", "fp16"),
            optim=config.optim,
        )
    return sizes, room


def spare_bytes(config: RunConfig, setup: Setup, accelerator: Accelerator) -> float:
    """What training leaves free, without checkpointing: below zero it does not fit.

    An engine that samples beside it has not started yet. All processes get the same answer, because
    they choose by it.
    """
    sizes, room = measure_run(config, setup, accelerator)
    work = count_work(
        config,
        setup.train_set,
        layout=setup.scorer.plan.layout,
        num_processes=accelerator.num_processes,
        num_held_out=len(setup.eval_set),
    )
    needed = footprint(sizes, work.load(config, checkpointing=False)).peak
    if config.spec.samples:
        from penchant.training.sampled_work import engine_bytes

        device = accelerator.device.type
        needed += engine_bytes(config, room.total, device, accelerator.num_processes)
    logger.info(
        "memory: %s at the peak without checkpointing (%.2f MiB of activations per token, at most "
        "%d tokens in a pass), of %s that can be had",
        gibibytes(needed), sizes.by_token / 2**20, work.longest, gibibytes(room.limit),
    )  # fmt: skip
    return min(team_of(accelerator).gather(room.limit - needed))
