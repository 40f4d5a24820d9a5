"""Rollouts: sampled answers with their advantages, and held-out prompts answered and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from penchant.core.evaluation import Evaluation
from penchant.core.machine import to_device
from penchant.data.shared_prompts import share_prompts
from penchant.methods import LossOutput
from penchant.methods.experience import RolloutInputs
from penchant.models.reference import Progress
from penchant.objectives.base import LaidOut, Parts

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import TokenBatch
    from penchant.data.source import StepBatch
    from penchant.data.tokenised import TokenisedPrompt
    from penchant.rl.rollout import Collector, Rollout

# Held-out prompts are always answered with the same random numbers.
EVALUATION_SEED = 20_000_003


class MeanLengths(NamedTuple):
    """In tokens: of all answers of a mini-batch, and of those whose advantage is above 0."""

    everyone: float
    good: float | None


# Of each token, as the answers were sampled and judged.
COLUMNS = ("logprobs", "advantages", "ref_logprobs", "values", "returns")


class Laid(NamedTuple):
    """A micro-batch as it is scored."""

    batch: TokenBatch
    position: Tensor
    """`[examples]`, which of the batch's completions each is."""
    columns: dict[str, Tensor]
    """`[N]` each, in the batch's order."""


class RolloutObjective:
    """The objective of methods that sample their own answers.

    Args:
        parts: whose scorer has the value head, where the method needs one.
        collector: answers held-out prompts.
    """

    def __init__(self, parts: Parts, collector: Collector) -> None:
        self.parts, self.collector = parts, collector
        self._laid_out = LaidOut(self._lay_out)
        self.look_ahead = self._laid_out.look_ahead

    def _lay_out(self, examples: Sequence[Rollout]) -> Laid:
        """A micro-batch, which prompts that are alike share."""
        groups, order = share_prompts([(e.prompt, e.completion) for e in examples])
        laid_out = [examples[i] for i in sorted(range(len(examples)), key=order.__getitem__)]
        columns: dict[str, Tensor] = {}
        for name in COLUMNS:
            rows = [row for e in laid_out if (row := getattr(e, name)) is not None]
            columns |= {name: torch.cat(rows)} if rows else {}
        scorer = self.parts.scorer
        device = scorer.device
        batch = scorer.lay_out(groups).to(device)
        position, *moved = to_device([torch.tensor(order), *columns.values()], device)
        return Laid(batch, position, dict(zip(columns, moved, strict=True)))

    def prepare(self, model: torch.nn.Module, step: StepBatch[Rollout]) -> MeanLengths:
        """Mean lengths over the whole mini-batch."""
        good = [e for e in step.examples if e.advantages[0] > 0]
        return MeanLengths(_mean_length(step.examples), _mean_length(good) if good else None)

    def __call__(
        self, model: torch.nn.Module, examples: Sequence[Rollout], shared: MeanLengths
    ) -> tuple[LossOutput, int]:
        batch, position, columns = self._laid_out(examples)
        out = model(batch, policy=True, **self._lesson(examples, batch))
        inputs = RolloutInputs(
            logprobs=out.logprobs,
            old_logprobs=columns["logprobs"],
            advantages=columns["advantages"],
            lengths=batch.completion_lengths,
            entropy=out.entropy,
            mean_len=shared.everyone,
            mean_good_len=shared.good,
            ref_logprobs=columns.get("ref_logprobs"),
            values=out.values,
            old_values=columns.get("values"),
            returns=columns.get("returns"),
            divergence=out.divergence,
            teacher_kl=out.teacher_kl,
        )
        output = self.parts.method.loss(inputs, self.parts.options)
        return _reordered(output, position), batch.num_tokens

    def _lesson(self, examples: Sequence[Rollout], batch: TokenBatch) -> dict[str, Any]:
        """What the teacher says of a micro-batch, where there is a teacher."""
        teacher = self.collector.teacher
        if teacher is None:
            return {}
        groups, _ = share_prompts([(e.prompt, e.completion) for e in examples])
        return {"lesson": teacher.lesson(groups, batch, self.collector.policy)}

    def evaluate(
        self, examples: Sequence[TokenisedPrompt], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        """Answer held-out prompts once each, and judge the answers."""
        once = replace(self.collector, num_generations=1, batch_size=batch_size)
        metrics = once.peek(examples, EVALUATION_SEED)
        return Evaluation(
            num_examples=len(examples),
            loss=metrics.get("divergence"),
            reward=metrics.get("reward/mean"),
            reward_std=metrics.get("reward/std"),
            kl=metrics.get("kl"),
            kl_sequence=metrics.get("kl/sequence"),
            kl_sequence_error=metrics.get("kl/sequence_error"),
            entropy=metrics.get("entropy"),
            completion_length=metrics.get("completion/length"),
            completion_ended=metrics.get("completion/ended"),
        )


def _mean_length(examples: Sequence[Rollout]) -> float:
    return sum(len(e.completion) for e in examples) / len(examples)


def _reordered(output: LossOutput, order: Tensor) -> LossOutput:
    """Back to the order of the examples."""
    metrics = {name: values[order] for name, values in output.metrics.items()}
    return LossOutput(output.per_example[order], metrics)
