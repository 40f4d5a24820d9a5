"""Metrics of one optimizer step: sums over micro-batches and processes, then means."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from penchant.core.machine import to_device, widest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


class StepMetrics:
    """Adds up per-example values of the micro-batches of one step, on their device."""

    def __init__(self) -> None:
        # By the names that a micro-batch has: `[names, 2]`, each metric's sum, and over how many
        # examples, since not all say something of every example.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[str, float] = defaultdict(float)

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        """Add `[examples]` values, NaN where they say nothing of an example.

        A weight of 0 leaves out examples that only fill a rank.
        """
        rows = torch.stack([value.detach() for value in values.values()])  # [names, examples]
        rows = rows.to(widest(rows.device))
        sums = torch.stack([rows.nansum(1), (~rows.isnan()).sum(1)], dim=1) * weight
        names = tuple(values)
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums

    def count(self, name: str, amount: float) -> None:
        """Add to something that is counted, not averaged."""
        self._counts[name] += amount

    def means(self, accelerator: Accelerator, also: Tensor | None = None) -> dict[str, float]:
        """Means over the examples of all processes; counts as they are; what is empty left out.

        The host waits for the device here, and only here. One number more, the same in all
        processes, is read at the same time, and comes back under the name `also`.
        """
        totals: dict[str, Tensor] = {}  # `[2]` each
        for names, sums in self._sums.items():
            for name, row in zip(names, sums, strict=True):
                totals[name] = totals[name] + row if name in totals else row
        counted = torch.tensor([[amount, 0.0] for amount in self._counts.values()])
        (counts,) = to_device([counted.view(-1, 2)], accelerator.device)
        rows = torch.cat([torch.stack(list(totals.values())).to(torch.float32), counts])
        rows = accelerator.reduce(rows, "sum")
        if also is not None:
            dtype = torch.promote_types(rows.dtype, also.dtype)
            rows = torch.cat([rows.to(dtype), torch.stack([also, also.new_zeros(())])[None]])
        means = {}
        names_of_all = [*totals, *self._counts, *([] if also is None else ["also"])]
        for name, (total, count) in zip(names_of_all, rows.tolist(), strict=True):
            if count or total:
                means[name] = total / (count or 1.0)
        return {name: means[name] for name in sorted(means)}
