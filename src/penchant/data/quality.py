"""How far preferences can be trusted: what votes say of their noise, and the bias of length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from penchant.core.findings import Severity
from penchant.data.records import Pair, Text
from penchant.data.rows.messages import contents

FEW = 100  # records from which on there is something to learn, and to measure on
BIASED, STRONGLY_BIASED = 0.6, 0.75  # accuracy of the length alone
BIASED_Z = 3.0
NUM_RATED = 30  # pairs with votes: fewer say too little


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


@dataclass(frozen=True)
class LengthBias:
    """How often the longer completion, in characters, is the chosen one; counts of pairs."""

    longer_chosen: int
    shorter_chosen: int
    equal: int

    @property
    def longer_share(self) -> float:
        """Share of longer chosen completions among pairs of unequal length; one half for none."""
        unequal = self.longer_chosen + self.shorter_chosen
        return self.longer_chosen / unequal if unequal else 0.5

    @property
    def accuracy(self) -> float:
        """Of the better of the rules "the longer one" and "the shorter one", tossing for ties."""
        best = max(self.longer_chosen, self.shorter_chosen)
        total = self.longer_chosen + self.shorter_chosen + self.equal
        return (best + self.equal / 2) / total

    @property
    def biased(self) -> bool:
        """Whether length tells the label well, and not by chance."""
        unequal = self.longer_chosen + self.shorter_chosen
        gap = abs(self.longer_chosen - self.shorter_chosen)
        return self.accuracy >= BIASED and gap >= BIASED_Z * math.sqrt(max(unequal, 1))

    @property
    def severity(self) -> Severity:
        """How grave the bias is, where there is one."""
        return "warning" if self.biased else "note"

    @property
    def title(self) -> str:
        """What the bias does, in one sentence."""
        longer = "longer" if self.longer_share >= 0.5 else "shorter"
        return (
            f"the {longer} answer is the chosen one in "
            f"{max(self.longer_share, 1 - self.longer_share):.0%} of the pairs of unequal length: "
            f"length alone is right in {self.accuracy:.0%} of all, and is what will be learned"
        )

    @property
    def strongly_biased(self) -> bool:
        """Whether length tells nearly as much as the preferences do."""
        return self.biased and self.accuracy >= STRONGLY_BIASED


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


# Shares of pairs whose votes are not unanimous: from here on the signal is called so.
STRONG, NOISY, COIN_TOSS = 0.05, 0.25, 0.5


Signal = Literal["unknown", "strong", "standard", "noisy", "coin toss"]


def signal_of(num_records: int, num_contradicted: int, noise: Noise | None) -> Signal:
    """How clear preferences are, by their votes or by contradictions.

    Args:
        num_records: at least 1.
        num_contradicted: pairs that also occur the other way round, or labels of completions that
            were judged both ways.
        noise: of their votes, where there are any.
    """
    rated = noise is not None and noise.told
    share = max(noise.split_share if noise and rated else 0.0, num_contradicted / num_records)
    if share >= COIN_TOSS:
        return "coin toss"
    if share >= NOISY:
        return "noisy"
    if not rated:
        return "unknown"
    return "strong" if share <= STRONG else "standard"


def measure_length_bias(pairs: Sequence[Pair]) -> LengthBias:
    """How often the longer completion is the chosen one."""
    gaps = [_characters(pair.chosen) - _characters(pair.rejected) for pair in pairs]
    return LengthBias(
        longer_chosen=sum(gap > 0 for gap in gaps),
        shorter_chosen=sum(gap < 0 for gap in gaps),
        equal=sum(gap == 0 for gap in gaps),
    )


def _characters(text: Text) -> int:
    return sum(map(len, contents(text)))


NOISY_LABELS = 0.05  # estimated share of wrong labels from which a loss should know of them


def severity_of_noise(rate: float) -> Severity:
    """How grave it is that this share of the labels is estimated to be wrong."""
    return "warning" if rate >= NOISY_LABELS else "note"
