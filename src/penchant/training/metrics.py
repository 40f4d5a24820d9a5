"""Metrics of one optimizer step: sums over micro-batches and processes, then means."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


class StepMetrics:
    """Adds up per-example values of the micro-batches of one step."""

    def __init__(self) -> None:
        # Each metric's sum, and over how many examples: not all say something of every example.
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        """Add `[examples]` values, NaN where they say nothing of an example.

        A weight of 0 leaves out examples that only fill a rank.
        """
        for name, value in values.items():
            known = value.detach().cpu().double()
            known = known[~known.isnan()]
            self._sums[name] += torch.stack([known.sum(), torch.tensor(float(len(known)))]) * weight

    def count(self, name: str, amount: float) -> None:
        """Add to something that is counted, not averaged."""
        self._sums[name] += torch.tensor([amount, 0.0])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the examples of all processes; counts as they are; what is empty left out."""
        names = sorted(self._sums)
        totals = torch.stack([self._sums[name] for name in names]).to(torch.float32)
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").tolist()
        means = {}
        for name, (total, count) in zip(names, totals, strict=True):
            if count or total:
                means[name] = total / (count or 1.0)
        return means
