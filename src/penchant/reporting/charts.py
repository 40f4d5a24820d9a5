"""Charts as SVG whose colours are variables of the page's style sheet.

They are written directly: a plotting library would cost each run more than a second at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

from penchant.reporting.curves import Line, Panel

WIDTH, HEIGHT = 317.0, 202.0
LEGEND = 25.0  # height of the legend that is counted in the chart's
FONT, SMALL = 9.0, 8.0
CHARACTER = 0.56  # mean width of a character, as a share of the font's size
HANDLE = 22.0  # length of a curve's sample in the legend
NUM_SERIES = 6
# Curves are told apart by dashes and marks too, for whom colours look alike. A mark is a path
# around its point: circle, square, triangle, diamond, triangle on its tip, plus.
DASHES = ("", "6 2.6", "10 2.6 1.6 2.6", "1.6 2.6", "8 1.6 1.6 1.6 1.6 1.6", "13 4.8")
MARKS = (
    "m-2 0a2 2 0 1 0 4 0a2 2 0 1 0-4 0",
    "m-1.8-1.8h3.6v3.6h-3.6z",
    "m0-2.2l2.2 4h-4.4z",
    "m0-2.6l2.6 2.6l-2.6 2.6l-2.6-2.6z",
    "m0 2.2l2.2-4h-4.4z",
    "m-.7-2.2h1.4v1.5h1.5v1.4h-1.5v1.5h-1.4v-1.5h-1.5v-1.4h1.5z",
)


@dataclass(frozen=True)
class Axis:
    """A range of values, and where on the drawing it lies from `start` to `end`.

    Attributes:
        low, high: the values at both ends.
        start, end: their places, in the drawing's units.
    """

    low: float
    high: float
    start: float = 0.0
    end: float = 1.0

    def at(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """Round values between two bounds with their labels; about `most`, integers if `whole`."""
    raw = max((high - low) / most, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    factors = (1.0, 2.0, 5.0, 10.0) if whole else (1.0, 2.0, 2.5, 5.0, 10.0)
    factor = next(one for one in factors if one * power >= raw * (1 - 1e-9))
    step = factor * power
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    decimals = max(0, -math.floor(math.log10(step)) + (factor == 2.5))
    return [(number * step, _label(number * step, step, decimals)) for number in numbers]


def _label(value: float, step: float, decimals: int) -> str:
    if abs(value) < step / 2:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.6g}M" if abs(value) < 1e12 else f"{value:.3g}"
    return f"{value:.3g}" if step < 1e-4 else f"{value:,.{decimals}f}"


def as_svg(panel: Panel) -> str:
    """Draw a panel; the same one gives the same text."""
    x, y = _axes(panel)
    mark = panel.mark if panel.mark and y.low <= panel.mark[0] <= y.high else None
    legend, top = _legend(panel, mark)
    labels = [label for _, label in ticks(y.low, y.high, 6)]
    left = (14 if panel.y else 2) + CHARACTER * FONT * max(map(len, labels), default=0) + 6
    x = Axis(x.low, x.high, left, WIDTH - 12)
    height = HEIGHT + max(0.0, top - LEGEND)  # a long legend leaves the curves their room
    y = Axis(y.low, y.high, height - 28, top + 6)
    parts = [_background(panel, x, y)]
    parts += [_curve(panel, line, x, y) for line in panel.lines]
    if mark:
        parts.append(_rule(x.start, y.at(mark[0]), x.end))
    parts += [*legend, _frame(panel, x, y)]
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(panel.title)}" '
        f'font-size="{FONT:g}" fill="currentColor">{"".join(parts)}</svg>'
    )


def _axes(panel: Panel) -> tuple[Axis, Axis]:
    """The ranges of both axes: the curves and, near them, what they are compared with."""
    xs = [value for line in panel.lines for value in line.x]
    ys = [value for line in panel.lines for value in (*line.y, *_shade(panel, line))]
    x, y = _wide(min(xs), max(xs)), _wide(min(ys), max(ys))
    if panel.band and not panel.scatter:
        y = Axis(min(y.low, 0.0), max(y.high, panel.band[1] * 1.1))
    if panel.mark:
        at, span = panel.mark[0], y.high - y.low
        if y.low - span <= at <= y.high + span:  # a mark far from the curves would flatten them
            y = Axis(min(y.low, at - span / 20), max(y.high, at + span / 20))
    return x, y


def _wide(low: float, high: float) -> Axis:
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):
        span = max(abs(low), abs(high)) or 1.0
    return Axis(low - span / 20, high + span / 20)


def _shade(panel: Panel, line: Line) -> Sequence[float]:
    """Extremes that are drawn behind a curve: those of few curves, where they differ."""
    shaded = not panel.scatter and line.low != line.high and len(panel.lines) < 3
    return [*line.low, *line.high] if shaded else []


def _background(panel: Panel, x: Axis, y: Axis) -> str:
    """The healthy range."""
    if not panel.band:
        return ""
    axis = x if panel.scatter else y
    low, high = (axis.at(min(max(value, axis.low), axis.high)) for value in panel.band)
    if panel.scatter:
        return _patch(low, y.end, high - low, y.start - y.end)
    return _patch(x.start, high, x.end - x.start, low - high)


def _curve(panel: Panel, line: Line, x: Axis, y: Axis) -> str:
    kind = line.style % NUM_SERIES
    points = [(x.at(a), y.at(b)) for a, b in zip(line.x, line.y, strict=True)]
    every = 1 if line.dots or panel.scatter else max(1, len(points) // 8)
    width = 0.7 if panel.scatter else 1.6
    parts = []
    if shade := _shade(panel, line):
        bounds = [(x.at(a), y.at(b)) for a, b in zip(line.x * 2, shade, strict=True)]
        around = [*bounds[: len(points)], *reversed(bounds[len(points) :])]
        parts.append(f'<path d="{_path(around)}z" fill="{_colour(kind)}" opacity=".18"/>')
    parts += [_stroke(_path(points), kind, width), _marks(points[::every], kind)]
    if panel.scatter:
        for (at, height), text in ((points[0], "start"), (points[-1], "end")):
            anchor = "end" if at > WIDTH - 30 else "start"
            parts.append(_text(at + 4, height - 5, text, SMALL, anchor))
    return "".join(parts)


def _legend(panel: Panel, mark: tuple[float, str] | None) -> tuple[list[str], float]:
    """What is drawn above the chart, and how high it is; nothing where the title says it."""
    entries: list[tuple[str, Callable[[float, float], str]]] = [
        (line.name, _sample(line.style % NUM_SERIES)) for line in panel.lines
    ]
    if panel.band:
        low, high = panel.band
        entries.append((f"healthy, {low:g} to {high:g}", lambda x, y: _patch(x, y - 3, HANDLE, 6)))
    if mark:
        entries.append((f"{mark[0]:g}: {mark[1]}", lambda x, y: _rule(x, y, x + HANDLE)))
    if len(entries) == 1 and not panel.overlaid:
        return [], 0.0
    widest = HANDLE + 14 + CHARACTER * SMALL * max(len(name) for name, _ in entries)
    columns = max(1, min(int((WIDTH - 4) // widest), 2 if len(panel.lines) < 5 else 3))
    room = int(((WIDTH - 4) / columns - HANDLE - 4) / (CHARACTER * SMALL))
    drawn, top = [], 8.0
    for start in range(0, len(entries), columns):
        row = [(wrap(name, room), sample) for name, sample in entries[start : start + columns]]
        for column, (lines, sample) in enumerate(row):
            x = 4 + column * (WIDTH - 4) / columns
            drawn.append(sample(x, top))
            drawn += [
                _text(x + HANDLE + 4, top + 3 + 11 * i, line, SMALL) for i, line in enumerate(lines)
            ]
        top += 11.0 * max(len(lines) for lines, _ in row)
    return drawn, top - 5


def _sample(kind: int) -> Callable[[float, float], str]:
    def draw(x: float, y: float) -> str:
        line = _stroke(f"M{x:.1f} {y:.1f}h{HANDLE:g}", kind, 1.6)
        return line + _marks([(x + HANDLE / 2, y)], kind)

    return draw


def _frame(panel: Panel, x: Axis, y: Axis) -> str:
    """The axes with their ticks and names, and the grid."""
    across = ticks(x.low, x.high, 6, whole=not panel.scatter)
    upward = ticks(y.low, y.high, 6)
    grid = [f"M{x.at(value):.1f} {y.start:.1f}V{y.end:.1f}" for value, _ in across]
    grid += [f"M{x.start:.1f} {y.at(value):.1f}H{x.end:.1f}" for value, _ in upward]
    lines = f"M{x.start:.1f} {y.end:.1f}V{y.start:.1f}H{x.end:.1f}"
    lines += "".join(f"M{x.at(value):.1f} {y.start:.1f}v3" for value, _ in across)
    lines += "".join(f"M{x.start:.1f} {y.at(value):.1f}h-3" for value, _ in upward)
    middle = (y.start + y.end) / 2
    texts = [_text(x.at(value), y.start + 12, text, FONT, "middle") for value, text in across]
    texts += [_text(x.start - 5, y.at(value) + 3, text, FONT, "end") for value, text in upward]
    texts.append(_text((x.start + x.end) / 2, y.start + 24, panel.x, FONT, "middle"))
    if panel.y:
        name = _text(0, 0, panel.y, FONT, "middle")
        texts.append(f'<g transform="translate(9 {middle:.1f}) rotate(-90)">{name}</g>')
    return (
        f'<path d="{"".join(grid)}" stroke="currentColor" stroke-width=".6" opacity=".15"/>'
        f'<path d="{lines}" fill="none" stroke="currentColor" stroke-width=".8"/>{"".join(texts)}'
    )


def _colour(kind: int) -> str:
    return f"var(--series-{kind})"


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _stroke(path: str, kind: int, width: float) -> str:
    dashes = f' stroke-dasharray="{DASHES[kind]}"' if DASHES[kind] else ""
    return f'<path d="{path}" fill="none" stroke="{_colour(kind)}" stroke-width="{width}"{dashes}/>'


def _marks(points: Iterable[tuple[float, float]], kind: int) -> str:
    paths = "".join(f"M{x:.1f} {y:.1f}{MARKS[kind]}" for x, y in points)
    return f'<path d="{paths}" fill="{_colour(kind)}"/>'


def _patch(x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        'fill="var(--band)" opacity=".25"/>'
    )


def _rule(x: float, y: float, end: float) -> str:
    """A dotted line to compare with."""
    return (
        f'<path d="M{x:.1f} {y:.1f}H{end:.1f}" stroke="currentColor" stroke-width=".9" '
        'stroke-dasharray="1 2"/>'
    )


def _text(x: float, y: float, text: str, size: float, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
