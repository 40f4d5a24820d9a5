"""Refused rows counted by reason: what is said of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Protocol

NUM_EXAMPLES = 3


class Refused(Protocol):
    """What is said of a `Refusal`."""

    @property
    def where(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def detail(self) -> str: ...


def describe_refusals(refused: Iterable[Refused]) -> str:
    """Count refusals by reason, most frequent first, with a few examples of each."""
    tally = Tally()
    for refusal in refused:
        tally.add(refusal)
    return tally.describe()


class Tally:
    """Refusals counted by reason, with the first few of each: its size does not grow with them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Refused]] = defaultdict(list)

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, refusal: Refused) -> None:
        """Count one more."""
        self.counts[refusal.reason] += 1
        if self.counts[refusal.reason] <= NUM_EXAMPLES:
            self.examples[refusal.reason].append(refusal)

    def describe(self) -> str:
        """Each reason with its count, most frequent first, and a few examples."""
        lines = []
        for reason, number in self.counts.most_common():
            lines.append(f"  {number} refused: {reason}")
            lines += [f"    {one.where}: {one.detail}" for one in self.examples[reason]]
            if number > NUM_EXAMPLES:
                lines.append(f"    and {number - NUM_EXAMPLES} more")
        return "\n".join(lines)
