"""What objectives share when they evaluate held-out examples: both models scored, and means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.core.team import ALONE, Team
from penchant.models.comparison import compare_heads
from penchant.models.reference import Progress, Reference, weighted_sums

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Group, TokenBatch
    from penchant.models.scoring import Scorer, ScoringPlan


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
        comparable = other is not None and _comparable(scorer.plan, other.plan)
    # Only outside of it: the reference may be the policy's own model with its adapter off.
    if other is None or not comparable:
        return Scored(scorer(batch), reference.sums(groups, batch, weights), None, None)
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
        """What was compared, per token of all processes."""
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
