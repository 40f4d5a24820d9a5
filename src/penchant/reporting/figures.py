"""Final figures of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.core.screen import gibibytes
from penchant.guards.monitors.history import HEALTHY_KL, History
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
        costs["Tokens per second"] = f"{rate:,.0f}"
    memory = number(summary.get("memory_peak_bytes"))
    if memory is not None:
        costs["Peak memory"] = gibibytes(memory)
    return costs


def _evaluation(summary: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    evaluation = summary.get(f"evaluation_{side}")
    return evaluation if isinstance(evaluation, dict) else {}


@dataclass(frozen=True)
class Tile:
    """A figure that is read first: its name, its value, and what it is to be held against."""

    name: str
    value: str
    note: str = ""


def tiles(run: Run) -> list[Tile]:
    """The figures of a run that say most; those that it does not have are left out."""
    summary, history = run.summary or {}, run.history
    before, after = (_evaluation(summary, side) for side in ("before", "after"))
    found = [_accuracy(before, after), _moved("Margin", "margin", before, after),
             _moved("Held-out reward", "reward", before, after),
             _training_reward(history, after)]  # fmt: skip
    reading = final_divergence(history)
    if reading is not None:
        error = f" ± {reading.error:.2g}" if reading.error else ""
        band = f"nats per answer; healthy: {HEALTHY_KL[0]:g} to {HEALTHY_KL[1]:g}"
        found.append(Tile("KL of its own answers", f"{reading.value:.3g}{error}", band))
    found.append(_length(run))
    seconds = number(summary.get("train_seconds"))
    if seconds is not None:
        found.append(Tile("Time", duration(seconds), f"{run.steps:,} steps"))
    memory = number(summary.get("memory_peak_bytes"))
    if memory is not None:
        found.append(Tile("Peak memory", gibibytes(memory)))
    return [tile for tile in found if tile is not None]


def _accuracy(before: Mapping[str, Any], after: Mapping[str, Any]) -> Tile | None:
    share, count = number(after.get("accuracy")), number(after.get("num_examples"))
    if share is None:
        return None
    start = number(before.get("accuracy"))
    notes = [] if start is None else [f"from {start:.1%}"]
    error = ""
    if count and 0 <= share <= 1:
        error = f" ± {math.sqrt(share * (1 - share) / count):.1%}"
        notes.append(f"{count:,.0f} records")
    return Tile("Held-out accuracy", f"{share:.1%}{error}", ", ".join(notes))


def _moved(name: str, key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Tile | None:
    start, end = number(before.get(key)), number(after.get(key))
    if end is None:
        return None
    return Tile(name, shown(end), "" if start is None else f"from {shown(start)}")


def _training_reward(history: History, after: Mapping[str, Any]) -> Tile | None:
    """The mean reward of the last answers trained on, where none was held out."""
    rewards = history["reward/mean"]
    if not rewards or number(after.get("reward")) is not None:
        return None
    note = f"from {shown(rewards.values[0])}" if len(rewards) > 1 else "of the only answers"
    return Tile("Training reward", shown(rewards.last), note)


def _length(run: Run) -> Tile | None:
    """Mean tokens of the answers to held-out prompts, at the last step that has any."""
    for records in (run.samples, run.monitored):
        known = [one for one in records if number(one.get("num_tokens")) is not None]
        if not known:
            continue
        first, last = (pick(one["step"] for one in known) for pick in (min, max))

        def mean(step: int, known: list[dict[str, Any]] = known) -> float:
            values = [one["num_tokens"] for one in known if one["step"] == step]
            return sum(values) / len(values)

        note = f"tokens, from {mean(first):.1f}" if last > first else "tokens"
        return Tile("Answer length", f"{mean(last):.1f}", note)
    return None
