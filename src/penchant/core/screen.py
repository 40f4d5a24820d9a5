"""What every command shows while it works; imports no torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.logging import RichHandler
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
