"""What every command shows while it works; imports no torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import track as rich_track

from penchant.core.findings import Finding

Item = TypeVar("Item")

console = Console(stderr=True, soft_wrap=True)


def track(items: Iterable[Item], description: str, total: float | None = None) -> Iterator[Item]:
    """A progress bar on a terminal, nothing elsewhere; `total` where items do not know theirs."""
    return iter(
        rich_track(
            items,
            description,
            total=total,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    )


def track_bytes(
    items: Iterable[Item], description: str, total: int, position: Callable[[], int]
) -> Iterator[Item]:
    """As `track`, for the rows of a file: how many there are is known at its end only.

    Args:
        items: what is read.
        description: stands before the bar.
        total: bytes of the file.
        position: how many of them are read.
    """
    if not console.is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task, shown = bar.add_task(description, total=total), 0
        for item in items:
            # A bar has a few hundred places; a large file has millions of rows.
            if (now := position()) - shown >= total / 1000:
                bar.update(task, completed=now)
                shown = now
            yield item


class _Screen(RichHandler):
    """Messages wrapped to a terminal's width, and in whole lines where there is no terminal.

    A finding is said once: the points of a sweep and the members of an ensemble share most.
    """

    def __init__(self) -> None:
        super().__init__(console=console, show_path=False, show_time=False, markup=False)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(isinstance(value, Finding) for value in record.args or ()):
            if text in self._said:
                return
            self._said.add(text)
        if console.is_terminal:
            super().emit(record)
        else:
            console.out(f"{record.levelname:<8} {text}", highlight=False)


def setup_logging() -> None:
    """Penchant's own messages to the screen, everybody else's only from errors up."""
    handler = _Screen()
    logger = logging.getLogger("penchant")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

    # PEFT calls an old name of a transformers property: nothing a user could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


GIB = 2**30


def gibibytes(num_bytes: float) -> str:
    """As 1.4 GiB."""
    return f"{num_bytes / GIB:.3g} GiB"
