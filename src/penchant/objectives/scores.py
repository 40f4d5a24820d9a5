"""Scores: a reward model's scalars for two completions after one prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from penchant.core.evaluation import Evaluation
from penchant.core.machine import to_device
from penchant.core.screen import track
from penchant.methods import LossOutput
from penchant.methods.inputs import ScoreInputs
from penchant.models.reference import Progress
from penchant.objectives.base import LaidOut, Parts
from penchant.objectives.held_out import batches, mean

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.config.keys import RunConfig
    from penchant.data.batch import TokenBatch
    from penchant.data.source import StepBatch
    from penchant.data.tokenise import TokenisedPair

NUM_BINS = 10
STATISTICS = "reward_statistics.json"
STATISTICS_PAIRS = 1000


class ScoreObjective:
    """The objective of reward models."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._laid_out = LaidOut(self._lay_out)
        self.look_ahead = self._laid_out.look_ahead

    def _lay_out(self, examples: Sequence[TokenisedPair]) -> tuple[TokenBatch, Tensor | None]:
        """A micro-batch, and the margins of its pairs where all are known."""
        batch, margins = self.parts.scorer.batch([e.group() for e in examples]), _margins(examples)
        if margins is not None:
            (margins,) = to_device([margins], batch.ends.device)
        return batch, margins

    def prepare(self, model: torch.nn.Module, step: StepBatch[TokenisedPair]) -> None:
        """Losses of reward models share nothing."""

    def __call__(
        self, model: torch.nn.Module, examples: Sequence[TokenisedPair], shared: None
    ) -> tuple[LossOutput, int]:
        batch, margins = self._laid_out(examples)
        inputs = _inputs(model(batch), margins)
        return self.parts.method.loss(inputs, self.parts.options), batch.num_tokens

    @torch.no_grad()
    def scores(
        self, examples: Sequence[TokenisedPair], *, batch_size: int, progress: Progress
    ) -> ScoreInputs:
        """Of examples in some order, each once, on the CPU."""
        scorer, team = self.parts.scorer, self.parts.team
        with scorer.evaluating():
            parts = []
            for some, counts in batches(examples, batch_size, progress, team):
                scores = scorer(scorer.batch([example.group() for example in some]))
                if counts:
                    parts.append(_inputs(scores.cpu(), _margins(some)))
        parts = team.together(parts)
        margins = [part.margin for part in parts if part.margin is not None]
        return ScoreInputs(
            torch.cat([part.chosen for part in parts]),
            torch.cat([part.rejected for part in parts]),
            torch.cat(margins) if len(margins) == len(parts) else None,
        )

    def evaluate(
        self, examples: Sequence[TokenisedPair], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        inputs = self.scores(examples, batch_size=batch_size, progress=progress)
        return score_evaluation(inputs, self.parts.method.loss(inputs, self.parts.options))


def score_evaluation(inputs: ScoreInputs, output: LossOutput) -> Evaluation:
    """The evaluation of scores, with the losses and metrics that a method found for them."""
    both = torch.cat([inputs.chosen, inputs.rejected])
    return Evaluation(
        num_examples=len(inputs.chosen),
        loss=mean(output.per_example),
        accuracy=mean(output.metrics["reward/accuracy"]),
        margin=mean(output.metrics["reward/margin"]),
        reward_chosen=mean(inputs.chosen),
        reward_rejected=mean(inputs.rejected),
        calibration_error=calibration_error(inputs.chosen - inputs.rejected),
        score_mean=mean(both),
        score_std=float(both.cpu().double().std(correction=0)),
    )


def _margins(examples: Sequence[TokenisedPair]) -> Tensor | None:
    margins = [example.margin for example in examples]
    return torch.tensor(margins) if all(margin is not None for margin in margins) else None


def _inputs(scores: Tensor, margins: Tensor | None) -> ScoreInputs:
    chosen, rejected = scores.view(-1, 2).unbind(1)
    return ScoreInputs(chosen, rejected, None if margins is None else margins.to(chosen.dtype))


def calibration_error(margins: Tensor) -> float:
    """Expected calibration error of `sigmoid(|margin|)` as the probability of ranking right.

    Naeini et al. 2015 (https://doi.org/10.1609/aaai.v29i1.9602), with equal bins over [0.5, 1];
    margins are `[pairs]`, chosen minus rejected.
    """
    stated = margins.cpu().double().abs().sigmoid()
    right = (margins.cpu().double().sign() + 1) / 2
    bins = ((stated - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gaps = [
        (stated[bins == b].mean() - right[bins == b].mean()).abs()
        * (bins == b).cpu().double().mean()
        for b in range(NUM_BINS)
        if bool((bins == b).any())
    ]
    return float(torch.stack(gaps).sum())


def score_statistics(
    objective: ScoreObjective, examples: Sequence[TokenisedPair], config: RunConfig
) -> dict[str, float | int]:
    """Mean and deviation of the scores of training completions: what a normalisation needs.

    Of at most `STATISTICS_PAIRS` pairs, drawn by the run's seed.
    """
    drawn = random.Random(config.seed).sample(list(examples), min(len(examples), STATISTICS_PAIRS))
    inputs = objective.scores(drawn, batch_size=config.per_device_eval_batch_size, progress=track)
    both = torch.cat([inputs.chosen, inputs.rejected]).cpu().double()
    return {"mean": float(both.mean()), "std": float(both.std(correction=0)), "num": len(both)}
