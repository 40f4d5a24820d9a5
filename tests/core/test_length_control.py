"""Win rates at equal lengths: what length explains is taken out, and nothing else."""

from __future__ import annotations

import math

import pytest

from penchant.core.length_control import length_controlled
from penchant.core.resampling import share

NAN = math.nan


def designed(longer: float, shorter: float, num: int = 400) -> tuple[list[float], list[float]]:
    """Wins of `num` answers 100 characters longer than the other, and of as many shorter."""
    wins = [float(i < rate * num) for rate in (longer, shorter) for i in range(num)]
    return wins, [100.0] * num + [-100.0] * num


def names(num: int) -> list[str]:
    return [str(i) for i in range(num)]


def test_it_is_the_fitted_probability_at_no_difference() -> None:
    # Of two groups as far to either side, `a` is the mean of their log-odds:
    # (log(0.8 / 0.2) + log(0.5 / 0.5)) / 2 = 0.6931, and 1 / (1 + exp(-0.6931)) = 0.6667.
    found = length_controlled(*designed(0.8, 0.5), names(800))
    assert found is not None
    assert found.share.mean == pytest.approx(2 / 3, abs=1e-3)
    # b tanh(1) is half of their difference: 0.6931 / 0.7616 = 0.910, a little less by the prior.
    assert found.slope == pytest.approx(0.910, abs=0.01)
    assert found.deviation == pytest.approx(100, rel=1e-2)
    assert found.share.low < 2 / 3 < found.share.high
    assert found.share.high - found.share.low == pytest.approx(0.066, abs=0.01)


def test_where_length_says_nothing_it_is_the_win_rate() -> None:
    wins, differences = designed(0.6, 0.6)
    found, raw = length_controlled(wins, differences, names(800)), share(wins, names(800))
    assert found is not None and raw is not None
    assert found.share.mean == pytest.approx(0.6, abs=1e-6)
    assert found.slope == pytest.approx(0, abs=1e-6)
    assert found.share.low == pytest.approx(raw.low, abs=0.01)


def test_a_model_that_wins_by_length_alone_wins_half_of_equal_ones() -> None:
    wins, differences = designed(1.0, 0.0, 50)
    found = length_controlled(wins, differences, names(100))
    assert found is not None
    assert found.share.mean == pytest.approx(0.5, abs=1e-6)
    assert math.isfinite(found.slope) and found.slope > 3
    assert 0 < found.share.low < 0.5 < found.share.high < 1


def test_what_always_wins_wins_at_equal_lengths_and_ties_count_half() -> None:
    found = length_controlled([1.0] * 10, list(range(10)), names(10))
    assert found is not None and found.share.mean == 1
    assert found.share.low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)
    wins = [0.5, 0.5, 1.0, 0.0, NAN]
    tied = length_controlled(wins, [1.0, -1.0, 0.0, 0.0, 9.0], names(5))
    assert tied is not None and tied.share.mean == pytest.approx(0.5)
    assert tied.share.num_prompts == 4


def test_answers_to_one_prompt_are_resampled_together() -> None:
    wins, differences = designed(0.8, 0.5, 100)
    apart = length_controlled(wins * 4, differences * 4, names(800))
    together = length_controlled(wins * 4, differences * 4, names(200) * 4)
    assert apart is not None and together is not None
    ratio = (together.share.high - together.share.low) / (apart.share.high - apart.share.low)
    assert ratio == pytest.approx(2, rel=0.15)
    assert length_controlled([1.0, 0.0, 1.0], [5.0, 5.0, 5.0], names(3)) is None
    assert length_controlled([1.0, 0.0, NAN], [5.0, 4.0, 5.0], names(3)) is None
