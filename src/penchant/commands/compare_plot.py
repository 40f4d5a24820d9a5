"""A comparison as a picture: intervals by point, and the yardstick over the distance travelled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.atomic import replacing

if TYPE_CHECKING:
    from penchant.commands.comparison import Compared, Comparison
    from penchant.core.resampling import Interval

NAMES = {
    "win_rate": "win rate against the start",
    "reward": "reward of its own answers",
    "implicit": "implicit accuracy on held-out pairs",
    "raw": "raw accuracy on held-out pairs",
}


def plot(result: Comparison, file: Path) -> None:
    """Write the picture of every point that was measured, as a PNG; nothing where none was."""
    from matplotlib.figure import Figure

    points = [
        (one, on_yardstick, distance)
        for one in result.points
        if one.measured is not None
        and (on_yardstick := one.measured.interval(result.yardstick)) is not None
        and (distance := one.measured.interval("kl")) is not None
    ]
    if not points:
        return
    methods = list(dict.fromkeys(one.method for one, _, _ in points))
    colours = {method: f"C{i}" for i, method in enumerate(methods)}
    figure = Figure(figsize=(11, max(3.2, 0.34 * len(points) + 1.8)), layout="constrained")
    left, right = figure.subplots(1, 2)
    name = NAMES[result.yardstick]
    start = result.start.interval(result.yardstick)
    for row, (one, found, distance) in enumerate(points):
        style: dict[str, Any] = {"color": colours[one.method], "capsize": 3, "marker": "o"}
        if one is not result.points[result.recommended or 0]:
            style |= {"markerfacecolor": "white"}
        left.errorbar(found.mean, row, xerr=_ends(found), **style)
        right.errorbar(distance.mean, found.mean, xerr=_ends(distance), yerr=_ends(found), **style)
    left.set_yticks(range(len(points)), [_label(one, result) for one, _, _ in points])
    left.invert_yaxis()
    left.locator_params(axis="x", nbins=5)
    left.set_xlabel(f"{name}, 95% by prompt")
    right.set_xlabel("KL of its own answers from the start, nats per answer")
    right.set_ylabel(name)
    for method in methods:
        right.plot([], [], "o", color=colours[method], label=method)
    if start is not None:
        left.axvline(start.mean, color="grey", linestyle=":", linewidth=1)
        right.axhline(start.mean, color="grey", linestyle=":", linewidth=1, label="the start")
    right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    with replacing(file) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _label(one: Compared, result: Comparison) -> str:
    taken = result.recommended is not None and one is result.points[result.recommended]
    return f"{one.name}{' (recommended)' if taken else ''}"


def _ends(found: Interval) -> list[list[float]]:
    """As matplotlib draws them: below and above the mean; nothing where they are not known."""
    if math.isinf(found.low):
        return [[0.0], [0.0]]
    return [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]
