"""What every command shows while it works; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")

console = Console(stderr=True, soft_wrap=True)


def track(items: Iterable[Item], description: str) -> Iterator[Item]:
    """A progress bar on a terminal, nothing elsewhere."""
    return iter(
        rich_track(
            items, description, console=console, transient=True, disable=not console.is_terminal
        )
    )
