"""What the figures of a report show, as numbers; and the figures, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.audit.cues import Cue
from penchant.audit.probe import Probe
from penchant.data.lengths import Sample, TokenLengths

NUM_BINS = 40
NUM_BARS = 6
COLOURS = ("#2a78b8", "#d9822b")
# Stands for the page's own colour of text, which is another on dark screens.
INK = "#010203"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


@dataclass(frozen=True)
class Plot:
    """A figure: series over common edges (a histogram) or names (bars).

    Attributes:
        title, x, y: what it says.
        series: heights by name.
        edges: of the bins, one more than there are heights; empty where there are names.
        names: of the bars.
        marks: positions on the x axis to compare with, by name.
        log: whether the edges grow by a factor.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[float]]
    edges: Sequence[float] = ()
    names: Sequence[str] = ()
    marks: Mapping[str, float] = field(default_factory=dict)
    log: bool = False


def draw_up(
    table: NDArray[Any],
    kind: str,
    cues: Sequence[Cue],
    probe: Probe | None,
    languages: Mapping[str, int],
    lengths: tuple[Sample, TokenLengths] | None,
) -> list[Plot]:
    """The plots of a report, those that the data have numbers for."""
    plots = [_characters(table, kind), _per_prompt(table, kind)]
    if cues:
        plots.append(_cues(cues))
    if probe:
        plots.append(_certainty(probe))
    agreement = table["agreement"][np.isfinite(table["agreement"])]
    if agreement.size:
        heights, edges = np.histogram(agreement, bins=20, range=(0, 1))
        plots.append(
            Plot("Votes", "share of votes for the preference", "pairs",
                 {"pairs": heights.tolist()}, edges.tolist())
        )  # fmt: skip
    if len(languages) > 1:
        names, numbers = zip(*sorted(languages.items(), key=lambda one: -one[1])[:12], strict=True)
        plots.append(
            Plot("Languages (?: too short or unclear)", "language", "completions",
                 {"completions": numbers}, names=names)
        )  # fmt: skip
    if lengths:
        plots += _tokens(*lengths)
    return plots


def _characters(table: NDArray[Any], kind: str) -> Plot:
    if kind == "pairs":
        sides = {side: table[f"{side}_characters"] for side in ("chosen", "rejected")}
    else:
        good = table["desirable"]
        sides = {"desirable": table["chosen_characters"][good],
                 "undesirable": table["chosen_characters"][~good]}  # fmt: skip
    return _log_histogram("Lengths of completions", "characters", "completions", sides)


def _log_histogram(
    title: str, x: str, y: str, sides: Mapping[str, Any], marks: Mapping[str, float] | None = None
) -> Plot:
    longest = max(int(values.max(initial=1)) for values in sides.values())
    edges = np.geomspace(1, max(2, longest + 1), NUM_BINS + 1)
    series = {name: np.histogram(values, edges)[0].tolist() for name, values in sides.items()}
    return Plot(title, x, y, series, edges.tolist(), marks=marks or {}, log=True)


def _per_prompt(table: NDArray[Any], kind: str) -> Plot:
    _, sizes = np.unique(table["prompt"], return_counts=True)
    bounds = [1, 2, 3, 5, 9, 17, 33]
    names = ["1", "2", "3-4", "5-8", "9-16", "17-32", "33 and more"]
    heights = np.bincount(np.searchsorted(bounds, sizes, side="right") - 1)
    return Plot(f"Prompts by number of {kind}", kind, "prompts", {"prompts": heights.tolist()},
                names=names[: len(heights)])  # fmt: skip


def _cues(cues: Sequence[Cue]) -> Plot:
    names = [cue.name for cue in cues]
    series = {
        "of all held-out pairs": [cue.accuracy for cue in cues],
        "where it decides": [cue.when_differs for cue in cues],
    }
    return Plot("Accuracy of shallow cues (0.5: a coin)", "cue", "accuracy", series, names=names)


def _certainty(probe: Probe) -> Plot:
    series = {
        "expected of clean labels": [1 - share for share in probe.certain],
        "found": probe.disagreeing,
    }
    names = [f"{tenth}" for tenth in range(1, len(probe.certain) + 1)]
    return Plot("Labels against the probe's side", "tenth of pairs, by the probe's certainty",
                "share", series, names=names)  # fmt: skip


def _tokens(sample: Sample, lengths: TokenLengths) -> list[Plot]:
    prompts = np.array([prompt for prompt, _ in sample.rows])
    whole = np.array([prompt + max(answers) for prompt, answers in sample.rows])
    marks = {"max_prompt_length": float(lengths.cut.max_prompt_length),
             "max_length": float(lengths.cut.max_length)}  # fmt: skip
    sides = {"prompt": prompts, "with the longer completion": whole}
    return [_log_histogram("Lengths for the model", "tokens", "records", sides, marks)]


def as_svg(plot: Plot) -> str:
    """Render a plot; the same one gives the same text."""
    import matplotlib
    from matplotlib.figure import Figure

    colours: dict[Any, Any] = dict.fromkeys(INKED, INK)
    with matplotlib.rc_context({"svg.hashsalt": "penchant", "svg.fonttype": "path", **colours}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        if plot.names:
            _bars(axes, plot)
        else:
            for colour, (name, heights) in zip(COLOURS, plot.series.items(), strict=False):
                axes.stairs(heights, plot.edges, label=name, color=colour, fill=True, alpha=0.45)
        for (name, at), style in zip(plot.marks.items(), (":", "--"), strict=False):
            axes.axvline(at, color=INK, linestyle=style, label=name)
        if plot.log:
            axes.set_xscale("log")
        axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        axes.spines[["top", "right"]].set_visible(False)
        if len(plot.series) + len(plot.marks) > 1:
            axes.legend(frameon=False, fontsize="small")
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    return "<svg" + file.getvalue().partition("<svg")[2].replace(INK, "currentColor")


def _bars(axes: Any, plot: Plot) -> None:
    width = 0.8 / len(plot.series)
    at = np.arange(len(plot.names))
    for number, (name, heights) in enumerate(plot.series.items()):
        axes.bar(at + number * width, heights, width, label=name, color=COLOURS[number])
    spare = max(0, NUM_BARS - len(plot.names)) / 2  # few bars are not as wide as the figure
    axes.set_xlim(-0.6 - spare, len(plot.names) - 0.4 + spare)
    turned = max(map(len, plot.names)) > 4 and len(plot.names) > 5
    axes.set_xticks(at + 0.4 - width / 2, plot.names, rotation=30 if turned else 0)
    if plot.y == "accuracy":
        axes.axhline(0.5, color=INK, linestyle=":")
        axes.set_ylim(0.4, 1)
