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
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        """Add `[examples]` values; a weight of 0 leaves out examples that only fill a rank."""
        for name, value in values.items():
            total = value.detach().cpu().sum(dtype=torch.float64)
            self._sums[name] = self._sums[name] + total * weight

    def means(self, count: int, accelerator: Accelerator) -> dict[str, float]:
        """Means over the `count` examples of all processes."""
        names = sorted(self._sums)
        totals = torch.stack([self._sums[name] for name in names]).to(torch.float32)
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").tolist()
        return {name: total / count for name, total in zip(names, totals, strict=True)}
