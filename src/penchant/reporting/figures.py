"""Final figures of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.core.screen import gibibytes
from penchant.guards.monitors.history import HEALTHY_KL
from penchant.reporting.reading import Run, number
from penchant.reporting.verdict import final_divergence, in_nats
from penchant.reporting.words import duration, shown

EVALUATED = {
    "accuracy": "Held-out accuracy",
    "margin": "Held-out margin",
    "loss": "Held-out loss",
    "reward": "Held-out reward",
    "kl": "Held-out KL on {texts}, nats per token",
    "entropy": "Held-out entropy on {texts}, nats per token",
    "completion_length": "Held-out answers, tokens",
}
LAST = {
    "reward/mean": "Training reward, last",
    "monitor/reward": "Monitored reward, last",
    "monitor/distinct_2": "Distinct-2, last",
    "monitor/win_rate": "Win rate, last",
    "monitor/length": "Monitored answers, tokens",
}


def final_figures(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Rows of a table: a name, and a text for each run; rows that no run has are left out."""
    columns = [_figures(run) for run in runs]
    rows: dict[str, None] = {}
    for column in columns:
        rows |= dict.fromkeys(column)
    return [(name, [column.get(name, "-") for column in columns]) for name in rows]


def _figures(run: Run) -> dict[str, str]:
    summary, history = run.summary or {}, run.history
    figures = {"Method": run.method or "-", "Steps": f"{run.steps:,}"}
    before, after = (_evaluation(summary, side) for side in ("before", "after"))
    # Methods that sample are evaluated on answers of their own, all others on given texts.
    texts = "given texts" if number(after.get("reward")) is None else "its own answers"
    for key, name in EVALUATED.items():
        name = name.format(texts=texts)
        start, end = number(before.get(key)), number(after.get(key))
        if end is not None:
            figures[name] = shown(end) if start is None else f"{shown(start)} → {shown(end)}"
    for metric, name in LAST.items():
        if history[metric]:
            figures[name] = shown(history[metric].last)
    reading = final_divergence(history)
    if reading is not None:
        band = f"healthy: {HEALTHY_KL[0]:g} to {HEALTHY_KL[1]:g}"
        figures["KL of its own answers from the reference"] = f"{in_nats(reading)} ({band})"
    best = summary.get("best_step")
    if best is not None:
        rule = summary.get("best_rule")
        figures["Best step"] = f"{shown(best)} ({rule})" if rule else shown(best)
    return figures | _costs(summary)


def _costs(summary: Mapping[str, Any]) -> dict[str, str]:
    costs = {}
    seconds, monitors = number(summary.get("train_seconds")), number(summary.get("monitor_seconds"))
    if seconds is not None:
        costs["Time"] = duration(seconds)
    if seconds and monitors is not None:
        costs["Monitors"] = f"{duration(monitors)} ({monitors / seconds:.0%} of the steps' time)"
    rate = number(summary.get("tokens_per_second"))
    if rate is not None:
        costs["Tokens a second"] = f"{rate:,.0f}"
    memory = number(summary.get("memory_peak_bytes"))
    if memory is not None:
        costs["Peak memory"] = gibibytes(memory)
    return costs


def _evaluation(summary: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    evaluation = summary.get(f"evaluation_{side}")
    return evaluation if isinstance(evaluation, dict) else {}
