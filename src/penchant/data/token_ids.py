"""Token ids of many records in one array: 4 bytes a token, where a list of integers takes 33."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from penchant.data.batch import Turns

# What token ids are kept as: integers of 4 bytes.
TYPE = "i"


class Held(Protocol):
    """An array of token ids: one of Python's, or of numpy's over a file that is mapped."""

    def __getitem__(self, span: slice, /) -> Any: ...


class TokenIds(Sequence[int]):
    """Some token ids of an array that holds those of many records; equal to a list of the same.

    Args:
        held: the array.
        start, stop: where in it they stand.
    """

    __slots__ = ("_held", "_start", "_stop")

    def __init__(self, held: Held, start: int, stop: int) -> None:
        self._held, self._start, self._stop = held, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Any:
        return iter(self.tolist())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.tolist()[index]
        at = range(self._start, self._stop)[index]  # refuses what is outside
        return self._held[at : at + 1].tolist()[0]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds | list | tuple):
            return len(self) == len(other) and self.tolist() == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"TokenIds({self.tolist()})"

    def __reduce__(self) -> Any:
        return TokenIds, (array(TYPE, self.tolist()), 0, len(self))

    def tolist(self) -> list[int]:
        """A list of their own."""
        ids: list[int] = self._held[self._start : self._stop].tolist()
        return ids


class TokenStore:
    """Keeps the token ids of records one after another in one array."""

    def __init__(self) -> None:
        self._held = array(TYPE)

    def keep(self, ids: Sequence[int]) -> Sequence[int]:
        """The same ids out of the array; of several turns, those that are trained on stay named."""
        if isinstance(ids, Turns):
            return Turns(self.keep(ids.ids), ids.trained)
        start = len(self._held)
        self._held.extend(ids)
        return TokenIds(self._held, start, len(self._held))
