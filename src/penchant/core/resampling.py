"""Means by prompt with their intervals, by resampling prompts; imports no torch before it must."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NUM_RESAMPLES = 2_000
# The middle share of the resampled means.
COVERAGE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with the interval that 95% of its resamples lie in.

    Attributes:
        mean: over the values, not over the prompts.
        low, high: the ends.
        num_prompts: that were resampled.
    """

    mean: float
    low: float
    high: float
    num_prompts: int

    @property
    def holds_zero(self) -> bool:
        """Whether zero is one of the values that cannot be excluded."""
        return self.low <= 0 <= self.high


def interval(values: Sequence[float], prompts: Sequence[str], seed: int = 0) -> Interval | None:
    """The mean of values, and its interval from resampling whole prompts (percentile bootstrap).

    Values of one prompt are not independent, so that prompts are drawn and not values. Of one
    prompt alone nothing is known but the mean: the interval is infinite.

    Args:
        values: `[values]`; NaN where there is none, which is left out.
        prompts: `[values]`, what each belongs to.
        seed: the same one gives the same draws.

    Returns:
        None where there is no value.
    """
    sums: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        if not math.isnan(value):
            total = sums.setdefault(prompt, [0.0, 0.0])
            total[0] += value
            total[1] += 1
    if not sums:
        return None
    mean = sum(one for one, _ in sums.values()) / sum(count for _, count in sums.values())
    if len(sums) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    low, high = _quantiles(list(sums.values()), seed)
    return Interval(mean, low, high, len(sums))


def _quantiles(sums: list[list[float]], seed: int) -> tuple[float, float]:
    import torch

    table: Any = torch.tensor(sums, dtype=torch.float64)  # [prompts, 2]: sum and number
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (NUM_RESAMPLES, len(sums)), generator=generator)
    totals = table[drawn].sum(1)  # [resamples, 2]
    means = totals[:, 0] / totals[:, 1]
    ends = torch.tensor([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return low, high
