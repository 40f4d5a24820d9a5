"""Charts as SVG whose colours are variables of the page's style sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from penchant.reporting.curves import Line, Panel

# Stand-ins that the style sheet of the page gives a colour, by day and by night.
INK, BAND = "#010101", "#020202"
SERIES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
VARIABLES: Mapping[str, str] = {
    INK: "currentColor",
    BAND: "var(--band)",
    **{stand_in: f"var(--series-{number})" for number, stand_in in enumerate(SERIES)},
}
# Curves are told apart by dashes and marks too, for whom colours look alike.
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)))
MARKS = ("o", "s", "^", "D", "v", "P")
SETTINGS: Any = {
    "svg.hashsalt": "penchant", "svg.fonttype": "none", "font.size": 9, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "path.simplify": True, "path.simplify_threshold": 0.2, "font.family": "DejaVu Sans",
}  # fmt: skip


def as_svg(panel: Panel) -> str:
    """Draw a panel; the same one gives the same text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.4, 2.8), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for line in panel.lines:
            _draw(axes, panel, line)
        _compare(axes, panel)
        axes.set(xlabel=panel.x, ylabel=panel.y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, color=INK, linewidth=0.6)
        if panel.overlaid or len(panel.lines) > 1 or panel.band or panel.mark:
            columns = 2 if len(panel.lines) < 5 else 3
            figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=columns,
                          handlelength=3)  # fmt: skip
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(file.getvalue(), panel)


def _draw(axes: Any, panel: Panel, line: Line) -> None:
    kind = line.style % len(SERIES)
    every = 1 if line.dots or panel.scatter else max(1, len(line.x) // 8)
    axes.plot(
        line.x, line.y, color=SERIES[kind], linestyle=DASHES[kind], marker=MARKS[kind],
        markersize=4, markevery=every, linewidth=0.7 if panel.scatter else 1.6, label=line.name,
    )  # fmt: skip
    if panel.scatter:
        for at, text in ((0, "start"), (-1, "end")):
            axes.annotate(text, (line.x[at], line.y[at]), xytext=(4, 5),
                          textcoords="offset points", fontsize=8)  # fmt: skip
    elif line.low != line.high and len(panel.lines) < 3:
        axes.fill_between(line.x, line.low, line.high, color=SERIES[kind], alpha=0.18, linewidth=0)


def _compare(axes: Any, panel: Panel) -> None:
    """What is healthy; a mark far from the curves would flatten them, and is left out."""
    if panel.band:
        low, high = panel.band
        span = axes.axvspan if panel.scatter else axes.axhspan
        limits = axes.get_xlim() if panel.scatter else axes.get_ylim()
        span(low, high, color=BAND, alpha=0.25, linewidth=0, zorder=0,
             label=f"healthy, {low:g} to {high:g}")  # fmt: skip
        if panel.scatter:
            axes.set_xlim(limits)
        else:
            axes.set_ylim(min(limits[0], 0), max(limits[1], high * 1.1))
    if panel.mark:
        at, name = panel.mark
        low, high = axes.get_ylim()
        if low - (high - low) <= at <= high + (high - low):
            axes.axhline(
                at, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label=f"{at:g}: {name}"
            )


def _for_page(text: str, panel: Panel) -> str:
    """Only the drawing, with variables for colours and without names that the page has twice."""
    text = "<svg" + text.partition("<svg")[2]
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r' id="[a-zA-Z.]+_?\d+(_\d+)?"', _unless_used(text), text)
    text = text.replace("'DejaVu Sans'", "system-ui")
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
                  r'<svg viewBox="\1" role="img" aria-label="LABEL">', text, count=1)  # fmt: skip
    return text.replace("LABEL", re.sub(r"[^\w ,.:()/=+-]", "", panel.title), 1)


def _unless_used(text: str) -> Any:
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))

    def keep(match: re.Match[str]) -> str:
        return match[0] if match[0][5:-1] in used else ""

    return keep
