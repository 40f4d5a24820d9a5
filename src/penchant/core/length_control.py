"""A win rate at equal lengths: what it would be if no answer were longer than the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from penchant.core.resampling import (
    ELEMENTS,
    NUM_RESAMPLES,
    Interval,
    middle,
    prompt_counts,
    share,
)

# Deviation of the prior of the slope: it decides only where length alone separates wins.
PRIOR = 2.5
STEPS = 30
# Beyond it a probability is 0 or 1 for every purpose.
LARGEST = 30.0


@dataclass(frozen=True)
class LengthControlled:
    """Wins as a function of the difference in length.

    Attributes:
        share: the win rate at equal lengths, with its interval by prompt.
        slope: what one unit of `tanh(difference / deviation)` adds to the log-odds of a win:
            positive where longer answers win. None of a mean of several fits.
        deviation: of the differences, in the unit that they are given in; None likewise.
    """

    share: Interval
    slope: float | None
    deviation: float | None


def length_controlled(
    wins: Sequence[float], differences: Sequence[float], prompts: Sequence[str], seed: int = 0
) -> LengthControlled | None:
    """The win rate at equal lengths.

    Fits `P(win) = sigmoid(a + b tanh(d / s))`, where `d` is how much longer an answer is than the
    other and `s` the standard deviation of `d`, and returns `sigmoid(a)`: the prediction at
    `d = 0`. That is AlpacaEval 2's regression (Dubois et al. 2024,
    https://arxiv.org/abs/2404.04475) for one pair of models, without its term for the difficulty
    of an instruction, which takes the verdicts on many models to fit. `b` has a normal prior of
    deviation 2.5 in place of their L1 penalty.

    Args:
        wins: `[values]` in [0, 1]; NaN where there is none, which is left out.
        differences: `[values]`.
        prompts: `[values]`, which are resampled for the interval.
        seed: of the resamples.

    Returns:
        None where fewer than three values are known, or differences do not differ.
    """
    fitted = resampled_fits(wins, differences, prompts, seed)
    return None if fitted is None else fitted[0]


def resampled_fits(
    wins: Sequence[float], differences: Sequence[float], prompts: Sequence[str], seed: int = 0
) -> tuple[LengthControlled, Any] | None:
    """As `length_controlled`, with the win rate at equal lengths in each resample.

    That is a tensor `[NUM_RESAMPLES]`; it does not vary where one prompt alone is known.
    """
    import torch

    rows = zip(wins, differences, prompts, strict=True)
    known = [row for row in rows if not math.isnan(row[0])]
    deviation = stdev([row[1] for row in known]) if len(known) > 2 else 0.0
    if not deviation:
        return None
    raw = share([row[0] for row in known], [row[2] for row in known], seed)
    if raw is not None and raw.mean in (0, 1):  # no length changes what never differs
        return LengthControlled(raw, 0.0, deviation), _constant(raw.mean)
    y = torch.tensor([row[0] for row in known], dtype=torch.float64)
    x = torch.tensor([row[1] / deviation for row in known], dtype=torch.float64).tanh()
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(row[2] for row in known))}
    places = torch.tensor([numbers[row[2]] for row in known])
    a, b = _fit(x, y, torch.ones(1, len(known), dtype=torch.float64))
    mean = float(a.sigmoid())
    ends, drawn = (0.0, 1.0), _constant(mean)
    if len(numbers) > 1:
        at_once = max(1, ELEMENTS // len(known))
        fitted = [
            _fit(x, y, some[:, places])[0]
            for counts in prompt_counts(len(numbers), seed)
            for some in counts.split(at_once)
        ]
        drawn = torch.cat(fitted).sigmoid()
        ends = middle(drawn)
    return LengthControlled(Interval(mean, *ends, len(numbers)), float(b), deviation), drawn


def _constant(value: float) -> Any:
    import torch

    return torch.full((NUM_RESAMPLES,), value, dtype=torch.float64)


def _fit(x: Any, y: Any, weights: Any) -> tuple[Any, Any]:
    """Newton's method for each row of weights `[fits, values]`; returns `a` and `b`, `[fits]`."""
    import torch

    a = torch.zeros(len(weights), dtype=torch.float64)
    b = torch.zeros_like(a)
    for _ in range(STEPS):
        p = (a[:, None] + b[:, None] * x).sigmoid()  # [fits, values]
        residual, curvature = weights * (y - p), weights * p * (1 - p)
        gradient_a, gradient_b = residual.sum(1), residual @ x - b / PRIOR**2
        aa, ab = curvature.sum(1), curvature @ x
        bb = curvature @ (x * x) + PRIOR**-2
        determinant = aa * bb - ab * ab
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        a = (a + step_a.clamp(-2, 2)).clamp(-LARGEST, LARGEST)
        b = b + step_b.clamp(-2, 2)
        if float(step_a.abs().max()) < 1e-9 and float(step_b.abs().max()) < 1e-9:
            break
    return a, b
