"""What the loop asks of an objective, and what all objectives share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

from penchant.core.evaluation import Evaluation
from penchant.core.team import ALONE, Team
from penchant.methods import LossOutput, Method
from penchant.models.reference import Progress, Reference, weighted_sums

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Group, TokenBatch
    from penchant.data.source import StepBatch
    from penchant.models.scoring import Scorer, ScoringPlan

L = TypeVar("L")


class Objective(Protocol):
    """Turns examples into unreduced losses; knows the data, not the method by name."""

    def prepare(self, model: torch.nn.Module, step: StepBatch[Any]) -> Any:
        """What the losses of a step's micro-batches share, such as means over all of them."""

    def look_ahead(self, step: StepBatch[Any]) -> None:
        """Lay the micro-batches of the next step out, while the device is at work on this one."""

    def __call__(
        self, model: torch.nn.Module, examples: Sequence[Any], shared: Any
    ) -> tuple[LossOutput, int]:
        """Losses of one micro-batch, and how many tokens were laid out for them."""

    def evaluate(
        self, examples: Sequence[Any], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        """The policy on held-out examples, at least one."""


@dataclass(frozen=True)
class Parts:
    """What every objective is made of.

    Attributes:
        scorer: the policy.
        reference: None for methods without one.
        method, options: whose loss and rewards are computed.
        team: the processes that share the examples.
        max_length: tokens of a prompt with a completion of another one, where they are paired.
    """

    scorer: Scorer
    reference: Reference | None
    method: Method
    options: Any
    team: Team = ALONE
    max_length: int | None = None


class LaidOut(Generic[L]):
    """What passes over micro-batches take, laid out ahead of them or when it is asked for.

    Args:
        lay_out: examples to what a pass over them takes, on the device.
    """

    def __init__(self, lay_out: Callable[[Sequence[Any]], L]) -> None:
        self._lay_out = lay_out
        # The micro-batches are held, so that no other list gets their identity meanwhile.
        self._ahead: dict[int, tuple[Sequence[Any], L]] = {}

    def look_ahead(self, step: StepBatch[Any]) -> None:
        """Lay out the micro-batches of a step, which comes next."""
        self._ahead = {id(some): (some, self._lay_out(some)) for some, _ in step.micro_batches}

    def __call__(self, examples: Sequence[Any]) -> L:
        """Of one micro-batch."""
        known = self._ahead.get(id(examples))
        return self._lay_out(examples) if known is None else known[1]


@dataclass(frozen=True)
class Scored:
    """Log-probs of one batch `[N]` under policy and reference, and exact comparisons `[N]`."""

    logprobs: Tensor
    ref_sums: Tensor | None
    kl: Tensor | None
    entropy: Tensor | None


def score_both(
    scorer: Scorer,
    reference: Reference | None,
    groups: Sequence[Group],
    batch: TokenBatch,
    weights: Tensor | None = None,
) -> Scored:
    """Score a batch under both models, comparing whole distributions where both are at hand."""
    if reference is None:
        return Scored(scorer(batch), None, None, None)
    with reference.active() as other:
        if other is None or not _comparable(scorer.plan, other.plan):
            return Scored(scorer(batch), reference.sums(groups, batch, weights), None, None)
    from penchant.models.comparison import compare_heads

    with scorer.opened(), other.opened():
        with reference.active():
            their_head, their_transform = other.head_inputs(batch), other.transform
        both = compare_heads(
            scorer.head_inputs(batch),
            their_head,
            batch.targets,
            transform=scorer.transform,
            ref_transform=their_transform,
        )
    ref_sums = weighted_sums(batch, both.ref_logprobs, weights)
    return Scored(both.logprobs, ref_sums, both.kl, both.entropy)


def _comparable(policy: ScoringPlan, reference: ScoringPlan) -> bool:
    """Whether both models' hidden states can stand behind one batch and one walk of the heads."""
    fused = policy.fused_head and reference.fused_head
    return fused and policy.layout == reference.layout


class TokenMeans:
    """Sums over tokens of what `Scored` compares, and their means."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._tokens = 0

    def add(self, scored: Scored) -> None:
        """Add one batch."""
        self._tokens += len(scored.logprobs)
        for name in ("kl", "entropy"):
            value = getattr(scored, name)
            if value is not None:
                self._sums[name] = self._sums.get(name, 0.0) + value.cpu().double().sum().item()

    def means(self, team: Team = ALONE) -> dict[str, float]:
        """What was compared, a token of all processes."""
        known = [one for one in team.gather((self._sums, self._tokens)) if one[1]]
        tokens = sum(num for _, num in known)
        names = known[0][0] if known else {}
        return {name: sum(sums[name] for sums, _ in known) / tokens for name in names}


def by_length(examples: Sequence[Any]) -> list[Any]:
    """Examples in the order of `batches`: nothing depends on it but the time."""
    return sorted(examples, key=lambda e: e.group().num_tokens)


def batches(
    examples: Sequence[Any], batch_size: int, progress: Progress, team: Team = ALONE
) -> Iterator[tuple[list[Any], bool]]:
    """This process's batches of like length, and whether each counts or is a stand-in."""
    ordered = by_length(examples)
    rounds = team.rounds(range(0, len(ordered), batch_size))
    for i in progress(range(len(rounds)), "evaluating"):
        start, counts = rounds[i]
        yield ordered[start : start + batch_size], counts


def mean(value: Tensor) -> float:
    """Over what is not NaN."""
    return float(value.cpu().double().nanmean())
