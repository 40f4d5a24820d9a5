"""Rewards that are models: one with a score head, or an ensemble of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

import torch

from penchant.data.batch import Group
from penchant.models.reward_scorer import RewardScorer
from penchant.models.selfcheck import plan_scoring
from penchant.rl.rewards.samples import Sample
from penchant.rl.rewards.shaping import Statistics
from penchant.rl.rewards.tokens import RewardTokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

Autocast = Callable[[], AbstractContextManager[Any]]
Combination = Literal["mean", "min", "mean_minus_std"]

# Of the first samples, what the fast layout is checked on.
CHECKED_GROUPS, CHECKED_COMPLETIONS = 2, 2


@dataclass(frozen=True)
class ModelContext:
    """What reward models share with the run that they judge.

    Args:
        tokenizer: the policy's.
        policy: the policy where an adapter on the same base may live on it, else None.
        base: the resolved name of the policy's base.
        device, dtype: where reward models of their own go, and the type of their weights.
        frozen_dtype, precision: in what they are held, as for `hold_frozen`.
        autocast: makes the run's autocast context.
        batch_size: answers in a forward pass.
        max_length: the longest prompt with its answer, where that is known.
        trust_remote_code: run code that comes with a model.
        reads_plain: says of a reward model, by name, that it reads a plain prompt as it is written
            though the policy was asked it as a chat.
        whole: while it lasts, the policy's weights are whole, which processes may have divided.
    """

    tokenizer: PreTrainedTokenizerBase
    policy: PeftModel | None = None
    base: str | None = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    frozen_dtype: str = "auto"
    precision: str = "fp32"
    autocast: Autocast = nullcontext
    batch_size: int = 8
    max_length: int | None = None
    trust_remote_code: bool = False
    reads_plain: Callable[[str], bool] = lambda _: False
    whole: Callable[[], AbstractContextManager[None]] = nullcontext


class ModelReward:
    """The scores of one reward model.

    Args:
        name: by which metrics and messages call it.
        scorer: planned at the first call, on the samples of that call.
        tokens: encodes samples.
        context: of the run.
        statistics: of the model's training, where they are known.

    Attributes:
        findings: what the user should know about it.
        shares_policy: whether it is scored on the policy's own weights.
    """

    shares_policy = False

    def __init__(
        self,
        name: str,
        scorer: RewardScorer,
        tokens: RewardTokens,
        context: ModelContext,
        statistics: Statistics | None = None,
    ) -> None:
        self.name, self.scorer, self.tokens = name, scorer, tokens
        self.context, self.statistics = context, statistics
        self.findings = [text] if (text := tokens.finding()) else []
        self._planned = False

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Scores in the model's own units; answers to one prompt share its computation."""
        groups = _grouped([self.tokens(sample) for sample in samples], self.context.batch_size)
        scores = [0.0] * len(samples)
        with self.ready(), self.context.autocast():
            if not self._planned:
                self._plan([group for group, _ in groups])
            for batch in _batches(groups, self.context.batch_size):
                raw_scores = self.scorer(self.scorer.batch([group for group, _ in batch]))
                places = [place for _, own in batch for place in own]
                for place, score in zip(places, raw_scores.tolist(), strict=True):
                    scores[place] = score
        return scores

    def ready(self) -> AbstractContextManager[None]:
        """While it lasts, the weights are those of this reward."""
        return nullcontext()

    def held_bytes(self) -> int:
        """Memory that its weights take beside the policy's."""
        held = [*self.scorer.parameters(), *self.scorer.buffers()]
        return sum(one.numel() * one.element_size() for one in held)

    def _plan(self, groups: Sequence[Group]) -> None:
        few = [Group(g.prompt, g.completions[:CHECKED_COMPLETIONS]) for g in groups]
        longest = self.context.max_length or self.tokens.max_length
        plan_scoring(
            self.scorer,
            few[:CHECKED_GROUPS],
            attention="auto",
            max_length=min(longest, self.tokens.max_length),
        )
        self._planned = True


class EnsembleReward:
    """Several reward models of one kind, each in its own training's deviations from its mean.

    Args:
        name: by which metrics and messages call it.
        members: at least one, each with statistics.
        combination: `mean`, `min`, or `mean_minus_std`: `mean - k * std` over the members
            (Coste et al. 2023, https://arxiv.org/abs/2310.02743).
        k: how much disagreement costs.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[ModelReward],
        *,
        combination: Combination = "mean",
        k: float = 1.0,
    ) -> None:
        self.name, self.members, self.combination, self.k = name, members, combination, k
        self._known = [member.statistics for member in members if member.statistics is not None]
        assert len(self._known) == len(members), "loading refuses a member without statistics"
        # Scores come out in units of the members' deviations already.
        self.statistics = Statistics(0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The combined scores."""
        return self.combine([member(samples) for member in self.members])[0]

    def combine(self, scores: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
        """Combine the members' raw scores.

        Args:
            scores: `[members][samples]`, in each model's own units.

        Returns:
            `[samples]` the combined scores, and the deviation over the members (unbiased), which
            says how far they agree; NaN where a member's score is.
        """
        normalised = [
            [known.normalise(score) for score in own]
            for known, own in zip(self._known, scores, strict=True)
        ]
        combined, deviations = [], []
        for values in zip(*normalised, strict=True):
            deviation = _deviation(values)
            combined.append(self._combined(values, deviation))
            deviations.append(deviation)
        return combined, deviations

    def _combined(self, values: Sequence[float], deviation: float) -> float:
        if math.isnan(deviation):
            return math.nan
        if self.combination == "min":
            return min(values)
        return mean(values) - (self.k * deviation if self.combination == "mean_minus_std" else 0.0)


def _deviation(values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) if len(values) > 1 else 0.0


def _grouped(
    encoded: Sequence[tuple[list[int], list[int]]], limit: int
) -> list[tuple[Group, list[int]]]:
    """Answers to one prompt as one group, of at most `limit`, with their places in the batch."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for place, (prompt, _) in enumerate(encoded):
        by_prompt.setdefault(tuple(prompt), []).append(place)
    return [
        (Group(list(prompt), tuple(encoded[place][1] for place in some)), some)
        for prompt, places in by_prompt.items()
        for some in (places[i : i + limit] for i in range(0, len(places), limit))
    ]


def _batches(
    groups: Sequence[tuple[Group, list[int]]], limit: int
) -> Iterator[list[tuple[Group, list[int]]]]:
    """Groups in order, at most `limit` answers together."""
    batch: list[tuple[Group, list[int]]] = []
    for group in groups:
        if batch and sum(len(own) for _, own in [*batch, group]) > limit:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
