"""What a comparison found: which point is best, and which cannot be told apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from penchant.commands.yardstick import YARDSTICKS, Measured
from penchant.core.resampling import Difference, Interval
from penchant.data.records import counted


@dataclass(frozen=True)
class Compared:
    """One point of a comparison.

    Attributes:
        method: its name.
        values: the keys that vary.
        output: its run directory.
        measured: None where it failed.
        behind: how far it is behind the best point on the yardstick; None of the best itself.
        error: why it failed.
        train_seconds: of its optimizer steps.
        unjudged: why `monitor_reward` judged none of its answers, where that failed.
    """

    method: str
    values: dict[str, Any]
    output: Path
    measured: Measured | None
    behind: Difference | None = None
    error: str | None = None
    train_seconds: float = 0.0
    unjudged: str | None = None

    @property
    def name(self) -> str:
        """The method with the values that vary."""
        return " ".join([self.method, *(f"{key} {value}" for key, value in self.values.items())])


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; `compare.json` holds its figures.

    Attributes:
        output: the folder, with a run directory a point.
        yardstick: what decides, a key of `YARDSTICKS`.
        start: the model before training.
        points: in the order in which they were trained.
        best: the index of the point that is best on the yardstick; None where every point failed.
        recommended: of those that cannot be told apart from it, the one nearest to the start.
        reason: why that one.
    """

    output: Path
    yardstick: str
    start: Measured
    points: list[Compared]
    best: int | None
    recommended: int | None
    reason: str


def conclude(
    yardstick: str, start: Measured, points: Sequence[Compared]
) -> tuple[list[Compared], int | None, int | None, str]:
    """Which point is best, which cannot be told apart from it, and which to take.

    Args:
        yardstick: that decides.
        start: the model before training.
        points: in any order; those that failed have nothing measured.

    Returns:
        The points with how far they are behind the best; the index of the best and of the one to
        take, None where every point failed; and why.
    """
    sound = {i: found for i, one in enumerate(points) if (found := one.measured) is not None}
    if not sound:
        return list(points), None, None, "every point failed"
    means = {i: one.interval(yardstick) for i, one in sound.items()}
    known = {i: mean for i, mean in means.items() if mean is not None}
    if not known:
        return list(points), None, None, f"{yardstick} could not be measured of any point"
    best = max(known, key=lambda i: known[i].mean)
    behind = {i: sound[best].ahead(sound[i], yardstick) for i in known if i != best}
    judged = [replace(one, behind=behind.get(i)) for i, one in enumerate(points)]
    close = [best, *(i for i, one in behind.items() if one is not None and one.by_chance)]
    chosen = min(close, key=lambda i: sum(sound[i].kl) / len(sound[i].kl))
    reason = f"{yardstick} {shown(known[chosen])}"
    if len(close) == len(known) > 1:
        reason += f"; the {len(known)} points cannot be told apart"
    else:
        reason += f"; {len(close)} of {len(known)} points cannot be told apart from the best"
    if len(close) > 1:
        reason += ", and of these it stays nearest to the start"
    if left_out := len(sound) - len(known):
        reason += f"; {counted(left_out, 'point')} could not be judged"
    gain = sound[chosen].ahead(start, yardstick)
    if gain is not None:
        apart = "cannot be told apart from" if gain.by_chance else "differs from"
        reason += (
            f". It {apart} the start: {shown(gain, signed=True)}, not equal on "
            f"{gain.num_decided} of {gain.num_prompts} prompts, p = {gain.p:.2g}"
        )
    return judged, best, chosen, reason


def shown(found: Interval | None, *, signed: bool = False) -> str:
    """A mean with its interval, for people."""
    if found is None:
        return "-"
    sign = "+" if signed else ""
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def figures(result: Comparison) -> dict[str, Any]:
    """A comparison as figures by name, without the values of each pair."""

    def of(measured: Measured | None) -> dict[str, Any]:
        if measured is None:
            return {}
        names = (*YARDSTICKS, "kl", "length")
        found = {name: measured.interval(name) for name in names}
        return {name: asdict(one) for name, one in found.items() if one is not None}

    points = [
        {
            **{key: value for key, value in vars(one).items() if key not in ("measured", "behind")},
            "behind": one.behind and asdict(one.behind),
            "measured": of(one.measured),
        }
        for one in result.points
    ]
    return {
        "yardstick": result.yardstick,
        "meaning": YARDSTICKS[result.yardstick],
        "start": of(result.start),
        "points": points,
        "best": result.best,
        "recommended": result.recommended,
        "reason": result.reason,
    }
