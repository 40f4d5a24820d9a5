"""What the user sees while a run is under way: a live bar, or plain lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from penchant.core.screen import console

PLAIN_LINES = 20
# A number just below zero, which is written as zero.
NEGATIVE_ZERO = re.compile(r"-(0(?:\.0+)?)(?!\S)")
SHOWN = {
    "loss": "loss {:.4f}",
    "reward/margin": "margin {:.3f}",
    "reward/accuracy": "accuracy {:.2f}",
    "reward/mean": "reward {:.3f}",
    "kl/sequence": "KL {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
}


class TrainingProgress:
    """A context manager that shows steps as they are done."""

    def __init__(self, total: int, done: int, *, shown: bool) -> None:
        self._total, self._every = total, -(-total // PLAIN_LINES) or 1
        self._shown = shown
        self._live = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._live.add_task("train", total=total, completed=done, metrics="")

    def __enter__(self) -> TrainingProgress:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> None:
        """Show the metrics of `step`."""
        text = "  ".join(
            form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics
        )
        text = NEGATIVE_ZERO.sub(r"\1", text)
        self._live.update(self._task, completed=step, metrics=text)
        due = step % self._every == 0 or step in (1, self._total)
        if self._shown and not console.is_terminal and due:
            minutes, seconds = divmod(round(seconds_left), 60)
            console.print(
                f"step {step}/{self._total}  {text}  left {minutes}:{seconds:02d}", highlight=False
            )
