"""What the votes beside preferences say of their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from penchant.core.findings import Severity

NUM_RATED = 30  # pairs with votes: fewer say too little
NOISY_LABELS = 0.05  # estimated share of wrong labels from which a loss should know of them


@dataclass(frozen=True)
class Noise:
    """How far people agree on the preferences, from the votes that stand beside them.

    Attributes:
        num_rated: pairs with votes.
        num_split: those whose votes are not unanimous.
        mean_agreement: mean share of votes that equal the preference.
        votes: how many a pair has, as the shares suggest; 1 where they do not.
        vote_error: estimated probability that one vote is not what people would say on the whole.
        flip_probability: estimated probability that the majority, which is the label, is wrong.
    """

    num_rated: int
    num_split: int
    mean_agreement: float
    votes: int
    vote_error: float
    flip_probability: float

    @property
    def told(self) -> bool:
        """Whether enough pairs have votes for the estimate to say something."""
        return self.num_rated >= NUM_RATED

    @property
    def title(self) -> str:
        """What the votes say of the labels, in one sentence."""
        return (
            f"{self.flip_probability:.1%} of the labels are wrong by the votes' estimate: "
            f"{self.split_share:.0%} of the rated pairs are not unanimous"
        )

    @property
    def split_share(self) -> float:
        """Share of the rated pairs that is not unanimous."""
        return self.num_split / self.num_rated


def measure_noise(agreements: Sequence[float]) -> Noise | None:
    """From each rated pair's share of votes that equal its label; None without any.

    A vote is taken to be wrong with one probability everywhere, and the label to be the majority.
    """
    if not agreements:
        return None
    mean = sum(agreements) / len(agreements)
    votes = max(Fraction(share).limit_denominator(15).denominator for share in agreements)
    error = _vote_error(1 - mean, votes)
    return Noise(
        num_rated=len(agreements),
        num_split=sum(share < 1 for share in agreements),
        mean_agreement=mean,
        votes=votes,
        vote_error=error,
        flip_probability=_majority(error, votes)[1],
    )


def _vote_error(disagreement: float, votes: int) -> float:
    """The error of single votes that makes so large a share of them disagree with the majority."""
    low, high = 0.0, 0.5
    for _ in range(50):
        middle = (low + high) / 2
        if _majority(middle, votes)[0] < disagreement:
            low = middle
        else:
            high = middle
    return high if disagreement else 0.0


def _majority(error: float, votes: int) -> tuple[float, float]:
    """Share of votes against the majority, and probability that it is wrong; a coin breaks ties."""
    if votes == 1:  # nobody to be outvoted by
        return error, error
    against = wrong = 0.0
    for k in range(votes + 1):
        chance = math.comb(votes, k) * error**k * (1 - error) ** (votes - k)
        against += chance * min(k, votes - k) / votes
        wrong += chance * (1.0 if 2 * k > votes else 0.5 if 2 * k == votes else 0.0)
    return against, wrong


def severity_of_noise(rate: float) -> Severity:
    """How grave it is that this share of the labels is estimated to be wrong."""
    return "warning" if rate >= NOISY_LABELS else "note"
