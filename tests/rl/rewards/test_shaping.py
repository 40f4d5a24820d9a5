"""Scale, limits and penalties, against numbers worked by hand."""

from __future__ import annotations

import json
import math
import random

import pytest

from penchant.methods.online import RewardOptions
from penchant.rl.rewards.samples import Sample
from penchant.rl.rewards.shaping import (
    RunningStatistics,
    Statistics,
    clip,
    overlong,
    penalties,
    repeated_share,
)


def sample(ids, *, ended=True):
    return Sample("p", "c", [1], ids, ended, {}, "list:1")


def test_running_statistics_are_those_of_all_values_whatever_the_batches():
    """1, 2, 3, 4, 10: mean 4, squared deviations 9 + 4 + 1 + 0 + 36 = 50, std sqrt(10)."""
    for cuts in ([5], [1, 1, 1, 1, 1], [2, 3], [4, 1]):
        values, running = iter([1.0, 2.0, 3.0, 4.0, 10.0]), RunningStatistics()
        for size in cuts:
            running.update([next(values) for _ in range(size)])
        assert running.num == 5
        assert running.mean == pytest.approx(4)
        assert running.std == pytest.approx(math.sqrt(10))
        assert running.normalise(4 + math.sqrt(10)) == pytest.approx(1)


def test_a_large_offset_costs_no_precision():
    running = RunningStatistics()
    for value in (4.0, 7.0, 13.0, 16.0):
        running.update([1e9 + value])
    assert running.std == pytest.approx(math.sqrt(22.5))


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e6])
def test_equal_rewards_are_normalised_to_0(value):
    running = RunningStatistics()
    for _ in range(10):
        running.update([value] * 7)
        assert running.normalise(value) == 0.0


def test_running_statistics_survive_json_exactly():
    draw, running = random.Random(0), RunningStatistics()
    running.update([draw.gauss(3, 2) for _ in range(1000)])
    other = RunningStatistics()
    other.load_state_dict(json.loads(json.dumps(running.state_dict())))
    assert other == running
    more = [draw.gauss(3, 2) for _ in range(10)]
    running.update(more)
    other.update(more)
    assert other == running


def test_saved_statistics_without_deviation_only_shift():
    assert Statistics(2.0, 4.0).normalise(10.0) == 2.0
    assert Statistics(2.0, 0.0).normalise(10.0) == 8.0


def test_clipping_is_symmetric_and_keeps_nan():
    assert [clip(v, 2.0) for v in (-5.0, -1.0, 3.0)] == [-2.0, -1.0, 2.0]
    assert clip(5.0, None) == 5.0
    assert math.isnan(clip(math.nan, 2.0))


def test_the_length_penalty_counts_tokens_beyond_the_budget():
    options = RewardOptions(reward=("size",), length_penalty=0.1, length_budget=4)
    assert [penalties(sample([5] * n), options)["length_penalty"] for n in (3, 4, 7)] == [
        0.0,
        0.0,
        pytest.approx(-0.3),
    ]


def test_the_overlong_form_is_dapo_equation_13():
    """L_max 20, buffer 5: free to 15, then (15 - n) / 5, and -1 from 20 on."""
    found = [overlong(n, 5, 20) for n in (1, 15, 16, 18, 20, 25)]
    assert found == [0.0, 0.0, -0.2, -0.6, -1.0, -1.0]
    options = RewardOptions(
        reward=("size",), overlong_buffer=5, overlong_penalty=2.0, max_completion_length=20
    )
    assert penalties(sample([5] * 18), options) == {"overlong_penalty": -1.2}


def test_a_missing_end_costs_only_answers_without_one():
    options = RewardOptions(reward=("size",), missing_eos_penalty=1.5)
    assert penalties(sample([5]), options)["missing_eos_penalty"] == 0.0
    assert penalties(sample([5], ended=False), options)["missing_eos_penalty"] == -1.5


def test_the_repeated_share_counts_3_grams_seen_before():
    """1 2 3 1 2 3 has the 3-grams 123, 231, 312, 123: one of four repeats."""
    assert repeated_share([1, 2, 3, 1, 2, 3]) == 0.25
    assert repeated_share([7] * 6) == 0.75
    assert repeated_share([1, 2]) == 0.0
    options = RewardOptions(reward=("size",), ngram_repetition_penalty=2.0)
    assert penalties(sample([7] * 6), options) == {"ngram_repetition_penalty": -1.5}


def test_no_penalty_is_in_use_unless_asked_for():
    options = RewardOptions(reward=("size",), max_completion_length=8)
    assert penalties(sample([7] * 8, ended=False), options) == {}
