"""When to look: as often as is useful, within a share of the run's time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

# Checks of a run that is long enough: more would not be read.
CHECKS = 10


@dataclass
class Pace:
    """Decides which steps are followed by a check.

    Attributes:
        num_steps: of the run.
        every: check every so many steps, whatever it costs; None: as time allows.
        share: largest share of the run's time, where `every` is None.
        last: step of the last check.
        checks: how many there were.
        seconds: what all of them took; dearest: the dearest of them.
    """

    num_steps: int
    every: int | None
    share: float
    last: int = 0
    checks: int = 0
    seconds: float = 0.0
    dearest: float = 0.0

    def spent(self, step: int, seconds: float) -> None:
        """A check was made."""
        self.last, self.checks = step, self.checks + 1
        self.seconds += seconds
        self.dearest = max(self.dearest, seconds)

    def due(self, step: int, train_seconds: float) -> bool:
        """Whether to check after a step.

        Args:
            step: that is done.
            train_seconds: that all steps took so far.
        """
        if step == self.last:
            return False
        if self.every is not None:
            return step % self.every == 0 or step == self.num_steps
        budget = self.share * train_seconds / step * self.num_steps - self.seconds
        if budget < self.dearest or not self.checks:
            return False
        left = self.num_steps - self.last
        affordable = max(1, int(budget / self.dearest))
        interval = max(math.ceil(self.num_steps / CHECKS), math.ceil(left / affordable))
        return step - self.last >= interval or step == self.num_steps

    def too_slow(self, seconds: float, run_seconds: float) -> bool:
        """Whether a first check would take more than half of what all checks may."""
        return self.every is None and seconds > self.share * run_seconds / 2

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, as far as it is not configured."""
        for field in fields(self):
            if field.name in ("last", "checks", "seconds", "dearest"):
                setattr(self, field.name, state[field.name])
