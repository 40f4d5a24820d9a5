"""What a sweep recommends, and what it says of points that chance may have ordered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.commands.sweep import Point, SweepResult, comparable_margins, recommend
from penchant.core.evaluation import Evaluation


def point(beta: float, accuracy: float, kl: float, **values: Any) -> Point:
    evaluation = Evaluation(num_examples=100, accuracy=accuracy, margin=beta, kl=kl)
    return Point({"beta": beta, **values}, Path(str(beta)), evaluation)


def test_points_within_chance_cannot_be_told_apart_and_the_nearest_is_taken() -> None:
    chosen, reason = recommend([point(0.05, 0.71, 0.3), point(0.1, 0.70, 0.1), point(1, 0.69, 0.2)])
    assert chosen == 1
    assert "0.700 ± 0.046" in reason and "the 3 points cannot be told apart" in reason


def test_a_point_beyond_chance_is_taken_whatever_its_distance() -> None:
    chosen, reason = recommend([point(0.05, 0.9, 2.0), point(0.1, 0.7, 0.1)])
    assert chosen == 0
    assert "1 of 2 points are within its standard error" in reason


def test_margins_are_not_compared_across_settings_that_scale_them() -> None:
    points = [point(0.05, 0.7, 0.1), point(0.1, 0.7, 0.1)]
    assert not comparable_margins(SweepResult(Path("sweep"), points, 0, ""))
    rates = [Point({"learning_rate": rate}, Path("run"), None) for rate in (1e-5, 1e-4)]
    assert comparable_margins(SweepResult(Path("sweep"), rates, None, ""))
