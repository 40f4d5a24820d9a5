"""Checks keep within their share of the time, and are where they were asked for."""

from __future__ import annotations

import json

from penchant.guards.monitors.pace import Pace


def spent(pace: Pace, step_seconds: float, check_seconds: float) -> list[int]:
    steps = []
    pace.spent(0, check_seconds)
    for step in range(1, pace.num_steps + 1):
        if pace.due(step, step * step_seconds):
            pace.spent(step, check_seconds)
            steps.append(step)
    return steps


def test_cheap_checks_come_ten_times_a_run() -> None:
    assert spent(Pace(200, None, 0.1), 1.0, 0.1) == list(range(20, 201, 20))


def test_dear_checks_come_less_often_and_stay_within_the_share() -> None:
    pace = Pace(200, None, 0.1)
    steps = spent(pace, 1.0, 4.0)
    assert pace.seconds <= 0.1 * 200
    assert 3 <= len(steps) < 10
    assert spent(Pace(200, None, 0.1), 1.0, 15.0) == [], "the start alone took what there was"


def test_steps_that_were_asked_for_are_kept_whatever_they_cost() -> None:
    assert spent(Pace(10, 4, 0.1), 0.01, 100.0) == [4, 8, 10]


def test_state_goes_on_behind_an_interruption() -> None:
    pace = Pace(10, 4, 0.1)
    pace.spent(4, 2.0)
    again = Pace(10, 4, 0.1)
    again.load_state(json.loads(json.dumps(pace.state())))
    assert again == pace
    assert not again.due(4, 1.0)


def test_first_check_that_would_eat_the_run_is_too_slow() -> None:
    assert Pace(10, None, 0.1).too_slow(1.0, 10.0)
    assert not Pace(10, None, 0.1).too_slow(1.0, 30.0)
    assert not Pace(10, 4, 0.1).too_slow(1.0, 1.0)
