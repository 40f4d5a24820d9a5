"""What the loop asks of what watches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Guard(Protocol):
    """What watches a run between its steps, and may end it."""

    @property
    def stopped(self) -> str:
        """Why the run is to end; empty while it goes on."""

    def note(self, record: Mapping[str, Any]) -> None:
        """Take in what was logged."""

    def after(self, step: int, train_seconds: float) -> bool:
        """Look at what a step has led to; tells whether its weights are worth keeping."""

    @property
    def best_step(self) -> int | None:
        """The checkpoint that it may go back to."""

    def state(self) -> dict[str, Any]:
        """What goes on after an interruption, as JSON."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
