"""How far annotators agree: the plain share, and Krippendorff's alpha."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement on the items that several annotators answered.

    Args:
        items: how many items have at least two answers.
        share: among all pairs of answers to one item, the share that is equal; None without items.
        alpha: Krippendorff's alpha for nominal answers: 1 is perfect, 0 is what chance gives;
            None where every answer is the same, since chance then agrees as well.
    """

    items: int
    share: float | None
    alpha: float | None

    def __str__(self) -> str:
        if self.share is None:
            return "no item has two answers yet"
        alpha = (
            "not defined, all answers are the same" if self.alpha is None else f"{self.alpha:.2f}"
        )
        items = "1 item" if self.items == 1 else f"{self.items} items"
        return (
            f"{self.share:.0%} equal on {items} with several answers; Krippendorff's alpha {alpha}"
        )


def measure_agreement(answers: Iterable[Sequence[str]]) -> Agreement:
    """Measure the agreement of answers.

    Args:
        answers: for each item the answers of its annotators; items with fewer than two tell
            nothing and are left out.

    Returns:
        The share of equal pairs, and alpha (Krippendorff 2011, "Computing Krippendorff's
        Alpha-Reliability", section C: nominal data, any number of observers, missing data).
    """
    units = [Counter(one) for one in answers if len(one) > 1]
    if not units:
        return Agreement(0, None, None)
    sizes = [unit.total() for unit in units]
    differing = [_differing(unit) for unit in units]
    share = 1 - sum(differing) / sum(size * (size - 1) for size in sizes)
    total = sum(sizes)
    observed = sum(count / (size - 1) for count, size in zip(differing, sizes, strict=True)) / total
    expected = _differing(sum(units, Counter())) / (total * (total - 1))
    return Agreement(len(units), share, 1 - observed / expected if expected else None)


def _differing(counts: Counter[str]) -> int:
    """How many ordered pairs of answers differ."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())
