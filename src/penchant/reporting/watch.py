"""A run as it goes on, in the terminal: step, time left, the main metrics, the last findings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from penchant.core.screen import gibibytes
from penchant.reporting.reading import Run, number, read_run
from penchant.reporting.verdict import judge
from penchant.reporting.words import duration

REFRESH_SECONDS = 2.0
NUM_FINDINGS = 4
WIDTH = 32
BLOCKS = "▁▂▃▄▅▆▇█"
SHOWN: Mapping[str, str] = {
    "loss": "loss",
    "reward/margin": "margin",
    "reward/accuracy": "accuracy",
    "reward/mean": "reward",
    "kl/sequence": "KL, nats per answer",
    "completion/length": "length, tokens",
    "entropy": "entropy",
    "eval/reward/accuracy": "held-out accuracy",
    "eval/loss": "held-out loss",
    "monitor/kl_sequence": "monitored KL",
    "monitor/reward": "monitored reward",
    "monitor/distinct_2": "distinct-2",
    "monitor/length": "monitored length",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def watch(run: str | Path, *, once: bool = False, console: Console | None = None) -> None:
    """Show a run until it is complete or Ctrl-C.

    Args:
        run: the run directory.
        once: show it once, and end.
        console: where to; default: standard output.

    Raises:
        ReportError: the folder holds no run.
    """
    path, screen = Path(run), console or Console()
    shown = read_run(path)
    if once or not screen.is_terminal:
        screen.print(frame(shown))
        return
    live = Live(frame(shown), console=screen, auto_refresh=False)
    with suppress(KeyboardInterrupt), live:  # this is how one stops looking; the run goes on
        while shown.summary is None:
            time.sleep(REFRESH_SECONDS)
            shown = read_run(path)
            live.update(frame(shown), refresh=True)


def frame(run: Run) -> RenderableType:
    """What is shown of a run at one time."""
    head = Text.assemble((run.name, "bold"), f"  {run.method}  ", _progress(run))
    history = run.history
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for metric, name in SHOWN.items():
        if history[metric]:
            values = history[metric].values
            table.add_row(name, sparkline(values), f"{values[-1]:.4g}", f"from {values[0]:.4g}")
    memory = history["memory_peak_bytes"]
    if memory:
        table.add_row("peak memory", "", gibibytes(memory.last), "")
    findings = [_finding(one) for one in run.findings[-NUM_FINDINGS:]]
    problems = [Text(one, style="yellow") for one in run.problems]
    end = [Text(str(judge(run)))] if run.summary is not None else []
    return Group(head, table, *findings, *problems, *end)


def sparkline(values: list[float], width: int = WIDTH) -> str:
    """The course of values as blocks, means of those that share one."""
    size = -(-len(values) // width)
    means = [sum(part) / len(part) for i in range(0, len(values), size)
             if (part := values[i : i + size])]  # fmt: skip
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[0] * len(means)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * top)] for value in means)


def seconds_left(run: Run) -> float | None:
    """From the steps' own time, where the run's length is known; without evaluations."""
    total = num_steps(run)
    timed = [
        tokens / rate
        for record in run.metrics
        if (tokens := number(record.get("tokens")))
        and (rate := number(record.get("tokens_per_second")))
    ]
    if total is None or not timed:
        return None
    return max(0, total - run.steps) * sum(timed) / len(timed)


def num_steps(run: Run) -> int | None:
    """Steps in all: as configured, or told by how far in its epochs the run is."""
    configured = run.config.get("max_steps")
    if isinstance(configured, int):
        return configured
    epochs = number(run.config.get("num_train_epochs"))
    for record in reversed(run.metrics):
        epoch = number(record.get("epoch"))
        if epoch and epochs and record["step"]:
            return max(record["step"], round(record["step"] * epochs / epoch))
    return None


def _progress(run: Run) -> str:
    if run.summary is not None:
        return f"complete, {run.steps} steps"
    total, left = num_steps(run), seconds_left(run)
    step = f"step {run.steps}" + (f" of {total}" if total else "")
    when = "" if left is None or not run.live else f", about {duration(left)} left"
    return step + when + ("" if run.live else ", not written to for ten minutes")


def _finding(one: Mapping[str, Any]) -> Text:
    severity = str(one.get("severity", "finding"))
    action = f" (done: {one['action']})" if one.get("action") else ""
    return Text.assemble(
        (severity, STYLES.get(severity, "")),
        f" {one.get('id', '?')}, step {one['step']}: {one.get('what', '')}{action}",
    )
