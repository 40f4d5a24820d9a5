"""Diversity is what it says, on answers small enough to count by hand."""

from __future__ import annotations

import math
import random

import pytest

from penchant.guards.monitors.diversity import bleu, distinct, repetition, same_opening, self_bleu


def test_distinct_counts_ngrams_over_all_answers_together() -> None:
    answers = [list("abab"), list("ab")]
    assert distinct(answers, 1) == 2 / 6
    assert distinct(answers, 2) == 2 / 4  # ab, ba, ab | ab
    assert distinct(answers, 3) == 1.0  # aba, bab
    assert distinct([["a"]], 2) == 0.0
    assert distinct([], 1) == 0.0


def test_bleu_is_that_of_the_definition() -> None:
    # 1-grams 3/4, 2-grams 2/3, 3-grams 1/2, 4-grams none: half a match of one; equal lengths.
    found = bleu(list("abcd"), [list("abce")])
    assert found == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    # The closest reference is twice as long.
    assert bleu(["a"], [["a", "b"]]) == pytest.approx(math.exp(1 - 2))


def test_bleu_takes_no_more_matches_than_a_reference_has() -> None:
    assert bleu(list("aa"), [list("ab")]) == pytest.approx((1 / 2 * 0.5 / 1) ** 0.5)


def test_self_bleu_tells_equal_answers_from_unlike_ones() -> None:
    draw = random.Random(0)
    unlike = [[draw.randrange(500) for _ in range(30)] for _ in range(8)]
    assert self_bleu([[1, 2, 3, 4, 5]] * 4) == pytest.approx(1.0)
    assert self_bleu(unlike) < 0.05
    assert self_bleu([[1, 2, 3], []]) == 0.0


def test_same_opening_is_the_share_of_the_most_frequent_one() -> None:
    answers = [line.split() for line in ("i am sorry but", "i am sorry", "yes", "no of course")]
    assert same_opening(answers) == 0.5
    assert same_opening(answers[2:]) == 0.0
    assert same_opening([]) == 0.0


def test_repetition_is_within_an_answer_not_between_answers() -> None:
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.0
    assert repetition([[1] * 5, [1, 2, 3]]) == pytest.approx((2 / 3 + 0) / 2)
    assert repetition([[1]]) == 0.0
