"""What a rule finds: an id, how bad it is, which rows, the numbers, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from penchant.core.findings import SEVERITIES as SEVERITIES
from penchant.core.findings import Severity as Severity
from penchant.data.near import Indices

NO_ROWS: Indices = np.empty(0, np.int64)


@dataclass(frozen=True)
class Finding:
    """One fault or fact of a data set.

    Attributes:
        id: a stable name, by which `clean` is told to drop the rows.
        severity: error where training on it is wrong, warning where it costs, note where it is
            only worth knowing.
        title: one sentence with the count.
        rows: the rows that the remedy drops, as indices, ascending.
        evidence: the numbers behind it.
        remedy: what to do.
        parts: rows by a part of the fault that can be dropped alone, such as a reason of refusal.
        sampled: only a sample of the rows was looked at, so `rows` are not all of them.
    """

    id: str
    severity: Severity
    title: str
    rows: Indices
    evidence: Mapping[str, Any]
    remedy: str
    sampled: bool = False
    parts: Mapping[str, Indices] = field(default_factory=dict)

    @property
    def droppable(self) -> bool:
        """Whether `clean` can apply it."""
        return bool(self.rows.size) and not self.sampled


@dataclass
class Places(Sequence[str]):
    """Where rows are, as `file:line`, made when asked for."""

    names: list[str]
    files: NDArray[np.uint16]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Places: ...
    def __getitem__(self, index: int | slice) -> str | Places:
        if isinstance(index, slice):
            return self.at(np.arange(len(self))[index])
        return f"{self.names[self.files[index]]}:{self.numbers[index]}"

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def at(self, rows: Indices) -> Places:
        """The places of some rows."""
        return Places(self.names, self.files[rows], self.numbers[rows])
