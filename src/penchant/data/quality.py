"""How far preferences can be trusted: how clear they are, and the bias of length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penchant.core.findings import Severity
from penchant.data.records import Pair, Text
from penchant.data.rows.messages import contents

if TYPE_CHECKING:
    from penchant.data.noise import Noise

FEW = 100  # records from which on there is something to learn, and to measure on
BIASED, STRONGLY_BIASED = 0.6, 0.75  # accuracy of the length alone
BIASED_Z = 3.0


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
