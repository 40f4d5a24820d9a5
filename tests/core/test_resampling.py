"""Intervals by prompt: as wide as the data are uncertain, wider where answers share a prompt."""

from __future__ import annotations

import math
import random

import pytest

from penchant.core import resampling
from penchant.core.resampling import difference, interval, sign_flip_p


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


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "p", "by_chance"),
    [(4, 0, 96, 1 / 8, True), (3, 0, 1, 1 / 4, True), (4, 0, 0, 1 / 8, True),
     (6, 0, 94, 1 / 32, False), (1, 9, 0, 22 / 1024, False), (0, 0, 5, 1.0, True)],
)  # fmt: skip
def test_few_decided_prompts_tell_two_models_apart_as_little_as_few_coins(
    wins: int, losses: int, ties: int, p: float, by_chance: bool
) -> None:
    """Of the 16 falls of four coins 2 are as uneven as four heads: p = 2 / 16."""
    values = [0.5] * wins + [-0.5] * losses + [0.0] * ties
    found = difference(values, [str(i) for i in range(len(values))])
    assert found is not None
    assert (found.num_decided, found.p) == (wins + losses, pytest.approx(p))
    assert found.by_chance == by_chance


def test_signs_are_flipped_by_prompt_and_drawn_where_they_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 1, 2 and 4 with any signs, sums of 7 and -7 alone are as far from 0 as 7 is: 2 of 8."""
    assert sign_flip_p([1.0, 2.0, 4.0]) == sign_flip_p([-1.0, -2.0, -4.0]) == 2 / 8
    assert sign_flip_p([1.0, 2.0, -4.0]) == 1.0
    # Four answers to one prompt are one witness.
    found = difference([1.0] * 7 + [3.0], [*"aaaa", *"bcde"])
    assert found is not None and (found.num_decided, found.p) == (5, 2 / 32)
    values = drawn(14)
    exact = sign_flip_p(values)
    monkeypatch.setattr(resampling, "MOST_EXACT", 0)
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)
