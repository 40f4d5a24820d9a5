"""What the curves of a report show: panels of series, thinned to what a screen can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from penchant.guards.monitors.history import DRIFTED_KL, HEALTHY_KL, History, Series
from penchant.reporting.reading import Run, number

NUM_POINTS = 200


@dataclass(frozen=True)
class Line:
    """One curve; every list is as long as `x`.

    Attributes:
        name: for the legend.
        x: steps, or nats.
        y: means of the values that fall on a point; `low` and `high` the least and the most.
        style: number of its dashes and mark; a run keeps its own from chart to chart.
        dots: whether its points are few enough to be marked each.
    """

    name: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    style: int = 0

    @property
    def dots(self) -> bool:
        return len(self.x) <= NUM_POINTS // 4


@dataclass(frozen=True)
class Panel:
    """A chart: curves over steps, or points of a scatter joined in their order.

    Attributes:
        title, x, y: what it says.
        lines: what it shows.
        band: a range that is healthy; mark: a value to compare with, and its name.
        scatter: x is no step; overlaid: lines are runs.
        group: under which heading it stands, of `GROUPS`.
    """

    title: str
    y: str
    lines: Sequence[Line]
    x: str = "step"
    band: tuple[float, float] | None = None
    mark: tuple[float, str] | None = None
    scatter: bool = False
    overlaid: bool = False
    group: str = "outcome"


@dataclass(frozen=True)
class _Kind:
    group: str
    title: str
    y: str
    metrics: tuple[str, ...]
    band: tuple[float, float] | None = None
    mark: tuple[float, str] | None = None
    scale: float = 1.0


# In the order of the page.
GROUPS = {"outcome": "Outcome", "training": "Training", "machine": "Machine"}
# What a curve is called in a legend.
WORDS = {
    "eval": "held out", "monitor": "monitored", "logprob/chosen": "chosen",
    "logprob/rejected": "rejected", "monitor/held_out_reward": "a reward not trained on",
    "monitor/distinct_1": "distinct words", "monitor/distinct_2": "distinct pairs of words",
    "monitor/distinct_3": "distinct triples of words", "monitor/self_bleu": "overlap of answers",
    "monitor/same_opening": "same opening", "monitor/repetition": "repetition",
}  # fmt: skip


def in_words(metric: str) -> str:
    """A metric as a legend names it: its title says what it is, and this of what."""
    return WORDS.get(metric) or WORDS.get(metric.partition("/")[0], "training")


KINDS = (
    _Kind("training", "Loss", "loss", ("loss", "eval/loss")),
    _Kind("outcome", "Margin between chosen and rejected", "reward",
          ("reward/margin", "eval/reward/margin")),
    _Kind("outcome", "Accuracy of preferences", "share",
          ("reward/accuracy", "eval/reward/accuracy"), mark=(0.5, "a coin")),
    _Kind("training", "Log-probs of completions", "nats", ("logprob/chosen", "logprob/rejected")),
    _Kind("outcome", "KL of its own answers from the reference", "nats per answer",
          ("kl/sequence", "monitor/kl_sequence", "eval/kl/sequence"), band=HEALTHY_KL,
          mark=(DRIFTED_KL, "drifted")),
    _Kind("training", "KL per token of its own answers", "nats per token", ("kl", "monitor/kl")),
    _Kind("outcome", "KL per token on held-out records", "nats per token", ("eval/kl",)),
    _Kind("outcome", "Reward of sampled answers", "reward",
          ("reward/mean", "monitor/reward", "eval/reward/mean", "monitor/held_out_reward")),
    _Kind("outcome", "Win rate against the starting model", "share", ("monitor/win_rate",),
          mark=(0.5, "a draw")),
    _Kind("outcome", "Length of answers", "tokens",
          ("completion/length", "monitor/length", "eval/completion/length")),
    _Kind("training", "Entropy", "nats per token", ("entropy", "monitor/entropy", "eval/entropy")),
    _Kind("outcome", "Diversity of answers", "share",
          ("monitor/distinct_2", "monitor/distinct_1", "monitor/distinct_3", "monitor/self_bleu",
           "monitor/same_opening", "monitor/repetition")),
    _Kind("training", "Norm of the gradient", "before clipping", ("grad_norm",)),
    _Kind("training", "Learning rate", "", ("learning_rate",)),
    _Kind("machine", "Throughput", "tokens per second", ("tokens_per_second",)),
    _Kind("machine", "Peak memory", "GiB", ("memory_peak_bytes",), scale=2.0**-30),
)  # fmt: skip
# By the rows in which the monitors, else the rollouts, tell both.
SCATTERS = (("monitor/kl_sequence", "monitor/reward"), ("kl/sequence", "reward/mean"))


def panels(runs: Sequence[Run]) -> list[Panel]:
    """The charts that the runs have numbers for; of several runs, one metric a chart."""
    histories = [run.history for run in runs]
    overlaid = len(runs) > 1
    drawn = []
    for kind in KINDS:
        metrics = [name for name in kind.metrics if any(_has(one, name) for one in histories)]
        if overlaid:
            metrics = metrics[:1]
        lines = [
            replace(
                thin(run.name if overlaid else in_words(metric), history[metric], kind.scale),
                style=number if overlaid else order,
            )
            for order, metric in enumerate(metrics)
            for number, (run, history) in enumerate(zip(runs, histories, strict=True))
            if _has(history, metric)
        ]
        if tells_more(lines):
            told = overlaid and len(kind.metrics) > 1
            title = f"{kind.title}, {in_words(metrics[0])}" if told else kind.title
            common: Any = {"band": kind.band, "mark": kind.mark, "group": kind.group}
            drawn.append(Panel(title, kind.y, lines, overlaid=overlaid, **common))
    return drawn + _scatter(runs)


def tells_more(lines: Sequence[Line]) -> bool:
    """Whether curves show more than the table of figures: points to join, and no lone flat line."""
    joined = any(len(line.x) > 1 for line in lines)
    return joined and not (len(lines) == 1 and is_flat(lines[0]))


def is_flat(line: Line) -> bool:
    """Whether a curve says no more than a number does."""
    span = max(line.high) - min(line.low)
    return span <= 1e-6 * max(map(abs, (*line.low, *line.high)))


def _has(history: History, metric: str) -> bool:
    """Whether a run has a metric; KTO's `kl` is of completions of other prompts, not of answers."""
    return metric in history and (metric != "kl" or "kl/sequence" in history)


def thin(name: str, series: Series, scale: float = 1.0) -> Line:
    """At most `NUM_POINTS` points of a series: means, with the extremes of what each stands for."""
    size = -(-len(series) // NUM_POINTS)
    x, y, low, high = [], [], [], []
    for start in range(0, len(series), size):
        values = [value * scale for value in series.values[start : start + size]]
        x.append(float(series.steps[min(start + size // 2, len(series) - 1)]))
        y.append(sum(values) / len(values))
        low.append(min(values))
        high.append(max(values))
    return Line(name, x, y, low, high)


def _scatter(runs: Sequence[Run]) -> list[Panel]:
    for kl, reward in SCATTERS:
        lines = [
            replace(line, style=style)
            for style, run in enumerate(runs)
            if (line := _pairs(run, kl, reward)) is not None
        ]
        if lines:
            return [Panel("Reward against KL", "reward", lines, x="KL of its own answers, nats",
                          band=HEALTHY_KL, scatter=True, overlaid=len(runs) > 1)]  # fmt: skip
    return []


def _pairs(run: Run, kl: str, reward: str) -> Line | None:
    points: list[tuple[float, float]] = []
    for record in run.metrics:
        x, y = number(record.get(kl)), number(record.get(reward))
        # A batch of answers is trained on several times, and logged every time.
        if x is not None and y is not None and (not points or points[-1] != (x, y)):
            points.append((x, y))
    if len(points) < 2:
        return None
    size = -(-len(points) // NUM_POINTS)
    points = [*points[::size], *([points[-1]] if (len(points) - 1) % size else [])]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Line(run.name, xs, ys, ys, ys)
