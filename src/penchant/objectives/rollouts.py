"""Rollouts: sampled answers with their advantages, and held-out prompts answered and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from penchant.core.evaluation import Evaluation
from penchant.data.batch import share_prompts
from penchant.methods import LossOutput
from penchant.methods.experience import RolloutInputs
from penchant.models.reference import Progress
from penchant.objectives.base import Parts

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.source import StepBatch
    from penchant.data.tokenise import TokenisedPrompt
    from penchant.rl.rollout import Collector, Rollout

# Held-out prompts are always answered with the same random numbers.
EVALUATION_SEED = 20_000_003


class MeanLengths(NamedTuple):
    """In tokens: of all answers of a mini-batch, and of those whose advantage is above 0."""

    everyone: float
    good: float | None


class RolloutObjective:
    """The objective of methods that sample their own answers.

    Args:
        parts: whose scorer has the value head, where the method needs one.
        collector: answers held-out prompts.
    """

    def __init__(self, parts: Parts, collector: Collector) -> None:
        self.parts, self.collector = parts, collector

    def prepare(self, model: torch.nn.Module, step: StepBatch[Rollout]) -> MeanLengths:
        """Mean lengths over the whole mini-batch."""
        good = [e for e in step.examples if e.advantages[0] > 0]
        return MeanLengths(_mean_length(step.examples), _mean_length(good) if good else None)

    def __call__(
        self, model: torch.nn.Module, examples: Sequence[Rollout], shared: MeanLengths
    ) -> tuple[LossOutput, int]:
        groups, order = share_prompts([(e.prompt, e.completion) for e in examples])
        laid_out = [examples[i] for i in sorted(range(len(examples)), key=order.__getitem__)]
        batch = self.parts.scorer.batch(groups)
        device = batch.targets.device

        def column(name: str) -> Any:
            rows: list[Tensor | None] = [getattr(e, name) for e in laid_out]
            known = [row for row in rows if row is not None]
            return torch.cat(known).to(device) if known else None

        out = model(batch, policy=True)
        inputs = RolloutInputs(
            logprobs=out.logprobs,
            old_logprobs=column("logprobs"),
            advantages=column("advantages"),
            lengths=batch.completion_lengths,
            entropy=out.entropy,
            mean_len=shared.everyone,
            mean_good_len=shared.good,
            ref_logprobs=column("ref_logprobs"),
            values=out.values,
            old_values=column("values"),
            returns=column("returns"),
        )
        output = self.parts.method.loss(inputs, self.parts.options)
        return _reordered(output, torch.tensor(order, device=device)), batch.num_tokens

    def evaluate(
        self, examples: Sequence[TokenisedPrompt], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        """Answer held-out prompts once each, and judge the answers."""
        once = replace(self.collector, num_generations=1, batch_size=batch_size)
        metrics = once.peek(examples, EVALUATION_SEED)
        return Evaluation(
            num_examples=len(examples),
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
