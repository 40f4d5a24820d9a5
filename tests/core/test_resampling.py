"""Intervals by prompt: as wide as the data are uncertain, wider where answers share a prompt."""

from __future__ import annotations

import math
import random

import pytest

from penchant.core.resampling import interval


def drawn(count: int) -> list[float]:
    source = random.Random(0)
    return [source.gauss(1, 2) for _ in range(count)]


def test_of_independent_prompts_it_is_that_of_the_normal_approximation() -> None:
    values = drawn(400)
    found = interval(values, [str(i) for i in range(400)])
    assert found is not None
    mean = sum(values) / 400
    error = math.sqrt(sum((one - mean) ** 2 for one in values) / 399 / 400)
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert interval(values, [str(i) for i in range(400)]) == found


def test_answers_that_share_a_prompt_count_as_one() -> None:
    values = drawn(100)
    repeated = [value for value in values for _ in range(4)]
    apart = interval(repeated, [str(i) for i in range(400)])
    together = interval(repeated, [str(i // 4) for i in range(400)])
    assert apart is not None and together is not None
    assert together.mean == pytest.approx(apart.mean)
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(2, rel=0.15)
    assert together.num_prompts == 100


def test_what_is_not_known_is_left_out_and_one_prompt_excludes_nothing() -> None:
    assert interval([math.nan], ["a"]) is None
    found = interval([1.0, math.nan, 3.0], ["a", "b", "a"])
    assert found is not None and found.mean == 2.0 and found.num_prompts == 1
    assert found.holds_zero
