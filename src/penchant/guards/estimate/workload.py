"""How many tokens the passes of a run lay out: known before it starts, but for sampled answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from penchant.data.batch import share_prompts
from penchant.training.rollouts import num_sampled_steps, probe_groups

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group
    from penchant.training.setup import Setup

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
    """

    num_steps: int
    passes: Sequence[int]
    num_counted: int
    longest: int
    predicted: int

    @property
    def num_passes(self) -> float:
        """Of the whole run."""
        return len(self.passes) / self.num_counted * self.num_steps

    @property
    def num_tokens(self) -> float:
        """Of the whole run."""
        return sum(self.passes) / self.num_counted * self.num_steps


def count_work(
    config: RunConfig, setup: Setup, accelerator: Accelerator, *, answer_length: float | None = None
) -> Workload:
    """The passes of a run.

    Args:
        config, setup, accelerator: of the run.
        answer_length: for methods that sample: expected tokens of an answer; default: the longest.
    """
    if config.spec.samples:
        return _sampled(config, setup, answer_length)
    source = setup.dataset(config, accelerator)
    packed = setup.scorer.plan.packed
    num_counted = min(source.num_steps, NUM_COUNTED)
    groups = [
        groups_of(config, examples)
        for step in islice(source.steps(), num_counted)
        for examples, weight in step.micro_batches
        if weight
    ]
    passes = [laid_out(some, packed=packed) for some in groups]
    return Workload(
        source.num_steps,
        passes,
        num_counted,
        max(passes),
        max(sum(len(c) for group in some for c in group.completions) for some in groups),
    )


def groups_of(config: RunConfig, examples: Sequence[Any]) -> list[Group]:
    """As the method lays a micro-batch out: single completions behind one prompt together."""
    if config.spec.data == "pairs":
        return [example.group() for example in examples]
    return share_prompts([(e.prompt, e.completion) for e in examples])[0]


def laid_out(groups: Sequence[Group], *, packed: bool) -> int:
    """Tokens of one pass: each prompt once when packed, else all rows as long as the longest."""
    if packed:
        return sum(group.num_tokens for group in groups)
    rows = [len(group.prompt) + len(c) for group in groups for c in group.completions]
    return len(rows) * max(rows)


def _sampled(config: RunConfig, setup: Setup, answer_length: float | None) -> Workload:
    options: Any = config.options
    longest = int(options.max_completion_length)
    micro_batch, accumulation = (
        config.per_device_train_batch_size,
        config.gradient_accumulation_steps,
    )
    groups = probe_groups(setup.train_set, longest)
    groups.sort(key=lambda group: -group.num_tokens)
    packed = setup.scorer.plan.packed
    prompts = sum(len(group.prompt) for group in groups) / len(groups)
    # Answers of one prompt are laid out behind it together.
    shared = min(options.generations, micro_batch)
    expected = longest if answer_length is None else answer_length
    mean = micro_batch * (expected + prompts / (shared if packed else 1))
    num_groups = math.ceil(micro_batch / shared)
    peak = sum(len(g.prompt) for g in groups[:num_groups]) + micro_batch * longest
    if not packed:
        peak = micro_batch * groups[0].num_tokens
    num_steps = num_sampled_steps(config, len(setup.train_set))
    return Workload(num_steps, [round(mean)] * accumulation, 1, peak, micro_batch * longest)
