"""A progress bar over a file, whose number of rows is known at its end only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from penchant.core import screen

Item = TypeVar("Item")


def track_bytes(
    items: Iterable[Item], description: str, total: int, position: Callable[[], int]
) -> Iterator[Item]:
    """As `track`, for the rows of a file.

    Args:
        items: what is read.
        description: stands before the bar.
        total: bytes of the file.
        position: how many of them are read.
    """
    if not screen.console.is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen.console, transient=True) as bar:
        task, shown = bar.add_task(description, total=total), 0
        for item in items:
            # A bar has a few hundred places; a large file has millions of rows.
            if (now := position()) - shown >= total / 1000:
                bar.update(task, completed=now)
                shown = now
            yield item
