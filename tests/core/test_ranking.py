"""How a score ranks answers: shares of ties, RewardBench 2's Ties, and totals, by hand."""

from __future__ import annotations

import math

import pytest

from penchant.core.ranking import REWARD_BENCH, Ranked, rank, right_share, ties_score

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "num_correct", "expected"),
    [
        ([2.0, 1.0], 1, 1.0), ([1.0, 2.0], 1, 0.0), ([1.0, 1.0], 1, 0.5),
        ([3.0, 1.0, 2.0, 0.0], 1, 1.0), ([3.0, 3.0, 3.0, 0.0], 1, 1 / 3),
        ([3.0, 3.0, 4.0, 0.0], 1, 0.0), ([1.0, 3.0, 2.0], 2, 1.0), ([1.0, NAN], 1, NAN),
    ],
)  # fmt: skip
def test_a_right_answer_counts_one_over_those_that_are_as_good(scores, num_correct, expected):
    assert right_share(scores, num_correct) == pytest.approx(expected, nan_ok=True)


def test_ties_prefer_right_answers_and_make_little_of_their_differences():
    # Lead 1.5 - 0.5 = 1 over a spread of 0.5, and 2 in the twin: everything, and tanh(1 / 0.5 - 1).
    assert ties_score([2.0, 1.5, 0.5, 0.0], 2, [3.0, 1.0, 0.0], 1) == pytest.approx(
        0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1)
    )
    # A wrong answer beats the worst right one; the twin is right by 0.1: 0.3 and tanh(-0.25 - 1).
    assert ties_score([2.0, 0.0, 0.5], 2, [1.0, 0.9], 1) == pytest.approx(
        0.3 + 0.01 * math.tanh(-1.25)
    )
    # The lead exceeds the spread among the many (1 > 0.5) and not in the twin (0.4).
    assert ties_score([2.0, 1.5, 0.5], 2, [0.9, 0.5], 1) == pytest.approx(
        0.3 + 0.3 + 0.2 + 0.01 * math.tanh(0.8 - 1)
    )
    # No spread: the margin's term is that of an infinite ratio, and of 0 / 0 it is 0.
    assert ties_score([2.0, 2.0, 1.0], 2, [2.0, 1.0], 1) == pytest.approx(1.01)
    assert ties_score([2.0, 2.0, 2.0], 2, [2.0, 1.0], 1) == pytest.approx(0.3)


def asked(subset, rights, differences=None, prompts=None):
    differences = differences or [float(i) for i in range(len(rights))]
    prompts = prompts or [f"{subset} {i}" for i in range(len(rights))]
    rows = zip(rights, differences, prompts, strict=True)
    return [Ranked(right, length, prompt, subset) for right, length, prompt in rows]


def test_totals_are_over_questions_or_over_subsets():
    some = [*asked("a", [1.0] * 6 + [0.0] * 2), *asked("b", [1.0, 0.0]), *asked("b", [NAN])]
    over_all = rank(some)
    assert over_all.total.accuracy.mean == pytest.approx(0.7)
    assert (over_all.total.num, over_all.rule) == (10, "over all questions")
    assert [(row.name, row.num, row.accuracy.mean) for row in over_all.subsets] == [
        ("a", 8, 0.75), ("b", 2, 0.5)
    ]  # fmt: skip
    by_subset = rank(some, mean_of_subsets=True)
    assert by_subset.total.accuracy.mean == pytest.approx(0.625)
    assert by_subset.total.accuracy.num_prompts == 10
    assert by_subset.rule == "the mean of the subsets"
    alone = rank(asked("a", [1.0, 0.0]))
    assert alone.subsets == [] and alone.total.accuracy.mean == 0.5


def test_the_interval_of_a_mean_of_subsets_is_that_of_its_parts():
    # Deviations of 0.25 and 0.5 / 10: the mean's is their quadratic mean over 2.
    some = [*asked("a", [1.0, 0.0] * 50), *asked("b", [1.0, 0.0] * 50)]
    total = rank(some, mean_of_subsets=True).total.accuracy
    assert total.high - total.low == pytest.approx(2 * 1.96 * 0.05 / math.sqrt(2), rel=0.1)


def test_a_mean_of_subsets_at_equal_lengths_is_that_of_its_parts():
    """Length alone decides in a, and nothing in b; a subset without a figure takes the mean's."""
    apart = [100.0] * 60 + [-100.0] * 60
    by_length = asked("a", [1.0] * 60 + [0.0] * 60, apart)
    by_merit = asked("b", ([1.0] * 45 + [0.0] * 15) * 2, apart)
    found = rank([*by_length, *by_merit], mean_of_subsets=True)
    a, b = (row.equal_length.share for row in found.subsets)
    total = found.total.equal_length
    assert (a.mean, b.mean) == pytest.approx((0.5, 0.75), abs=1e-6)
    assert total.share.mean == pytest.approx(0.625, abs=1e-6)
    halves = [(one.high - one.low) / 2 for one in (a, b)]
    assert total.share.high - total.share.low == pytest.approx(math.hypot(*halves), rel=0.1)
    assert (total.share.num_prompts, total.slope, total.deviation) == (240, None, None)
    even = asked("c", [1.0, 0.0], [0.0, 0.0])
    assert rank([*by_length, *even], mean_of_subsets=True).total.equal_length is None
    right = rank([*asked("a", [1.0] * 6), *asked("b", [1.0] * 4)], mean_of_subsets=True).total
    assert right.equal_length.share == right.accuracy


def test_reward_bench_goes_by_its_sections():
    some = [
        *asked("alpacaeval-easy", [1.0, 1.0]), *asked("mt-bench-easy", [0.0]),
        *asked("math-prm", [1.0, 0.0]), *asked("hep-cpp", [1.0]),
    ]  # fmt: skip
    found = rank(some)
    chat, reasoning = 100 / 128, (0.5 * 984 + 164) / (984 + 164)
    assert {row.name: row.accuracy.mean for row in found.sections} == pytest.approx(
        {"Chat": chat, "Reasoning": reasoning}
    )
    assert found.total.accuracy.mean == pytest.approx((chat + reasoning) / 2)
    assert found.rule == "the mean of 2 sections"
    assert sum(sum(section.values()) for section in REWARD_BENCH.values()) == 2985 + 984 - 447


def test_all_right_is_not_certainty():
    found = rank(asked("a", [1.0] * 20)).total.accuracy
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-4)


def test_a_mean_of_subsets_that_are_all_right_is_not_certain():
    """No resample differs from another: the other end is that of Wilson's interval."""
    some = [*asked("a", [1.0] * 6), *asked("b", [1.0] * 4)]
    total = rank(some, mean_of_subsets=True).total.accuracy
    assert (total.mean, total.high, total.num_prompts) == (1.0, 1.0, 10)
    assert total.low == pytest.approx(10 / (10 + 1.959964**2))


def test_a_subset_of_one_prompt_may_be_anything_in_the_mean():
    one = asked("b", [1.0, 1.0, 0.0, 0.0], prompts=["same"] * 4)
    known = rank(asked("a", [1.0] * 3 + [0.0])).total.accuracy
    total = rank([*asked("a", [1.0] * 3 + [0.0]), *one], mean_of_subsets=True).total.accuracy
    assert total.mean == pytest.approx((0.75 + 0.5) / 2)
    assert (total.low, total.high) == pytest.approx((known.low / 2, (known.high + 1) / 2))
