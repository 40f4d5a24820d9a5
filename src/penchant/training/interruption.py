"""Ctrl-C and SIGTERM end a run after the step it is at, with a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

logger = logging.getLogger("penchant")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Within so many seconds another SIGTERM is the same wish: SLURM sends one to every process of a
# step, and torchrun hands on the one that it got.
SAME_WISH = 10.0


@dataclass
class Interruption:
    """Whether the run was asked to end."""

    wanted: bool = False
    since: float = 0.0
    """When that was; seconds of the monotonic clock."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the wish; the second time, end at once.

        Raises:
            KeyboardInterrupt: the wish was noted before, and this is another one.
        """
        now = time.monotonic()
        if self.wanted:
            if number == signal.SIGTERM and now - self.since < SAME_WISH:
                return
            raise KeyboardInterrupt
        self.wanted, self.since = True, now
        logger.warning("ending after this step, with a checkpoint; Ctrl-C once more ends at once")


@contextmanager
def watch_signals() -> Iterator[Interruption]:
    """Catch Ctrl-C and SIGTERM for a while; only the main thread of a process can."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption.handle) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
