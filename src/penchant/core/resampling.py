"""Means by prompt: intervals by resampling prompts, and whether chance alone could differ as much.

Imports no torch before it must.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

NUM_RESAMPLES = 2_000
# The middle share of the resampled means, and the normal deviate that leaves it.
COVERAGE = 0.95
Z = 1.959964
# Below it a difference is not called chance.
LEVEL = 0.05
# Prompts of which every choice of signs is gone through, and choices that are drawn for more.
MOST_EXACT = 16
NUM_FLIPS = 20_000
# Numbers that are in memory at once.
ELEMENTS = 2_000_000


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


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference of two models, which are one model where its sign is chance.

    Attributes:
        num_decided: prompts on which the two differ.
        p: of the sign-flip test by prompt, two-sided.
    """

    num_decided: int
    p: float

    @property
    def by_chance(self) -> bool:
        """Whether the two cannot be told apart.

        A percentile interval of few prompts, or of many on which few differ, is too narrow: the
        test has to agree with it.
        """
        return self.holds_zero or self.p >= LEVEL


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
    sums = _by_prompt(values, prompts)
    if not sums:
        return None
    mean = sum(one for one, _ in sums) / sum(count for _, count in sums)
    if len(sums) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    return Interval(mean, *middle(_means(sums, seed)), len(sums))


def difference(values: Sequence[float], prompts: Sequence[str], seed: int = 0) -> Difference | None:
    """As `interval`, of differences between two models, with a test of whether there is one.

    Were the two one model, each prompt's difference could as well have the other sign: `p` is the
    share of all choices of signs whose sum is as far from zero as the one that was found (Fisher's
    randomisation test). Where all differences are equally large, as with one verdict a prompt, it
    is the exact sign test.
    """
    found = interval(values, prompts, seed)
    if found is None:
        return None
    decided = [total for total, _ in _by_prompt(values, prompts) if total]
    ends = found.mean, found.low, found.high
    return Difference(*ends, found.num_prompts, len(decided), sign_flip_p(decided, seed))


def sign_flip_p(values: Sequence[float], seed: int = 0) -> float:
    """How often random signs give a sum as far from zero as the values have.

    Exact for values of one size and for at most `MOST_EXACT` of them; otherwise `NUM_FLIPS` choices
    are drawn, with the one that was found among them.

    Args:
        values: `[prompts]`, none of them zero.
        seed: of the draws.
    """
    import torch

    if not values:
        return 1.0
    sizes = [abs(value) for value in values]
    if max(sizes) == min(sizes):
        return sign_test_p(sum(value > 0 for value in values), len(values))
    # Sums of equal numbers in another order differ by rounding.
    least = abs(math.fsum(values)) - 1e-9 * math.fsum(sizes)
    if len(values) <= MOST_EXACT:
        sums = torch.zeros(1, dtype=torch.float64)
        for size in sizes:
            sums = torch.cat([sums + size, sums - size])  # [2 ** prompts] in the end
        return float((sums.abs() >= least).double().mean())
    generator = torch.Generator().manual_seed(seed)
    column, far = torch.tensor(sizes, dtype=torch.float64), 1
    at_once = max(1, ELEMENTS // len(values))
    for first in range(1, NUM_FLIPS, at_once):
        shape = min(at_once, NUM_FLIPS - first), len(values)
        signs = 2.0 * torch.randint(2, shape, generator=generator, dtype=torch.float64) - 1
        far += int(((signs @ column).abs() >= least).sum())
    return far / NUM_FLIPS


def sign_test_p(wins: int, decided: int) -> float:
    """The exact sign test, two-sided: how often fair coins fall as unevenly as wins and losses."""
    most = max(wins, decided - wins)
    tail = sum(math.comb(decided, i) for i in range(most, decided + 1))
    return min(1.0, 2 * tail / 2**decided)


def share(values: Sequence[float], prompts: Sequence[str], seed: int = 0) -> Interval | None:
    """As `interval`, of values in [0, 1]: its ends are too.

    Where all values are 0 or all are 1, no resample differs from another; then the other end is
    that of Wilson's interval (1927) for as many prompts.
    """
    found = interval(values, prompts, seed)
    if found is None:
        return None
    mean, num = found.mean, found.num_prompts
    if num > 1 and mean in (0, 1):
        beyond = Z**2 / (num + Z**2)
        return Interval(mean, *((0.0, beyond) if mean == 0 else (1 - beyond, 1.0)), num)
    return Interval(mean, max(found.low, 0.0), min(found.high, 1.0), num)


def resampled_means(values: Sequence[float], prompts: Sequence[str], seed: int) -> Any:
    """`[NUM_RESAMPLES]`: the mean in each resample of the prompts, as a tensor."""
    return _means(_by_prompt(values, prompts), seed)


def prompt_counts(num_prompts: int, seed: int) -> Iterator[Any]:
    """How often each prompt is in each of `NUM_RESAMPLES` resamples.

    Yields:
        Tensors `[some, num_prompts]`, so many resamples at a time as are small.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, ELEMENTS // num_prompts)
    for first in range(0, NUM_RESAMPLES, at_once):
        shape = min(at_once, NUM_RESAMPLES - first), num_prompts
        drawn = torch.randint(num_prompts, shape, generator=generator)
        counts = torch.zeros(shape, dtype=torch.float64)
        yield counts.scatter_add_(1, drawn, torch.ones_like(counts))


def middle(means: Any) -> tuple[float, float]:
    """The ends of the middle `COVERAGE` of resampled values."""
    import torch

    ends = torch.tensor([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return low, high


def _by_prompt(values: Sequence[float], prompts: Sequence[str]) -> list[tuple[float, int]]:
    """`[prompts]`: the sum and the number of each prompt's values."""
    sums: dict[str, tuple[float, int]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        if not math.isnan(value):
            total, count = sums.get(prompt, (0.0, 0))
            sums[prompt] = total + value, count + 1
    return list(sums.values())


def _means(sums: Sequence[tuple[float, int]], seed: int) -> Any:
    import torch

    table: Any = torch.tensor(sums, dtype=torch.float64)  # [prompts, 2]: sum and number
    totals = torch.cat([counts @ table for counts in prompt_counts(len(sums), seed)])
    return totals[:, 0] / totals[:, 1]
