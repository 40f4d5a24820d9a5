"""The processes that carry out a run together: who does what, and what all of them know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# By what launchers tell every process how many there are, and its number.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@dataclass(frozen=True)
class Team:
    """The processes of a run; each of them calls its methods in the same order.

    Attributes:
        rank: the number of this process; size: of all of them.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every `size`-th of the items, from that of this rank; others need not call it."""
        return list(items[self.rank :: self.size])

    def rounds(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """As `share`, all of one length: the last item stands in (False) where none is left."""
        own = [(item, True) for item in self.share(items)]
        missing = -(-len(items) // self.size) - len(own)
        return own + [(item, False) for item in items[-1:]] * missing

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; tensors must be on the CPU."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def together(self, own: Sequence[T]) -> list[T]:
        """The inverse of `share`, for all processes."""
        shares = self.gather(list(own))
        return [one[i] for i in range(len(shares[0])) for one in shares if i < len(one)]

    def agree(self, value: T) -> T:
        """The leader's value."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until every process has come here."""
        self.gather(None)


ALONE = Team()


def launched() -> Team:
    """The processes that a launcher started together, whether they see each other or not."""
    rank, size = (
        max(int(os.environ.get(name) or 0) for name in names) for names in (RANKS, WORLD_SIZES)
    )
    return Team(rank, size) if size > 1 else ALONE


def launched_here() -> int:
    """Of the launched processes, those on this machine; all of them where no launcher says."""
    size = launched().size
    return int(os.environ.get("LOCAL_WORLD_SIZE") or size) if size > 1 else 1
