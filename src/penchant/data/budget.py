"""Micro-batches by tokens: as many whole groups as a budget of positions holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penchant.data.batch import laid_out

if TYPE_CHECKING:
    from penchant.data.batch import Group, Layout

KEY = "max_tokens_per_batch"


class FoundLimit(int):
    """A limit that was found in the memory there was, where nobody asked for a number."""


@dataclass
class TokenBudget:
    """Divides the examples of a step; how it does so depends on nothing but them and the limit.

    Args:
        limit: positions of a micro-batch, padding included; it may fall during a run.
        lay_out: examples to the groups that one micro-batch of them lays out.
        layout: of the batches.
    """

    limit: int
    lay_out: Callable[[Sequence[Any]], Sequence[Group]]
    layout: Layout
    asked: int | str = field(init=False)

    def __post_init__(self) -> None:
        # A run that goes on keeps what it found at first, whatever memory is free now.
        self.asked = "auto" if isinstance(self.limit, FoundLimit) else self.limit
        self.limit = int(self.limit)

    def cost(self, examples: Sequence[Any]) -> int:
        """Positions that one micro-batch of the examples lays out."""
        return laid_out(self.lay_out(examples), layout=self.layout)

    def divide(self, examples: Sequence[Any]) -> list[list[Any]]:
        """Micro-batches within the limit; an example that is longer stands alone.

        Examples that share a prompt's tokens stay together, if they are not too long together.
        The longest are placed first, each in the first micro-batch that has room (first-fit
        decreasing). Padded rows are as long as the longest beside them: there like lengths
        follow each other.
        """
        passes: list[_Pass] = []
        padded = self.layout == "padded"
        pieces = self._pieces(examples)
        pieces.sort(key=lambda one: one.width if padded else one.packed, reverse=True)
        for piece in pieces:
            candidates = passes[-1:] if padded else passes
            roomy = (one for one in candidates if self._size(one, piece) <= self.limit)
            into = next(roomy, None)
            if into is None:
                passes.append(piece)
            else:
                into.add(piece)
        return [[examples[i] for i in sorted(one.numbers)] for one in passes]

    def lower(self, micro_batches: Sequence[Sequence[Any]]) -> int:
        """Halve the limit below what these took, of which one was too large; what they took."""
        largest = max(map(self.cost, micro_batches))
        self.limit = max(1, min(self.limit, largest) // 2)
        return largest

    def state(self) -> dict[str, int | str]:
        """What a resumed run needs to divide as this one does."""
        return {KEY: self.limit, "asked": self.asked}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Keep a limit that fell before, unless another one is asked for now."""
        if state.get("asked") == self.asked:
            self.limit = state[KEY]

    def _pieces(self, examples: Sequence[Any]) -> list[_Pass]:
        """Examples, joined where they share the tokens of a prompt and the limit holds them."""
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for number, example in enumerate(examples):
            by_prompt.setdefault(tuple(example.prompt), []).append(number)
        pieces: list[_Pass] = []
        for members in by_prompt.values():
            first = len(pieces)
            for number in members:
                alone = self._pass(examples, [number])
                if len(pieces) > first:
                    both = self._pass(examples, [*pieces[-1].numbers, number])
                    apart = self._size(pieces[-1]) + self._size(alone)
                    if self._size(both) <= self.limit and self._size(both) < apart:
                        pieces[-1] = both
                        continue
                pieces.append(alone)
        return pieces

    def _pass(self, examples: Sequence[Any], numbers: list[int]) -> _Pass:
        groups = self.lay_out([examples[i] for i in numbers])
        rows = [len(group.prompt) + len(c) for group in groups for c in group.completions]
        packed = 0 if self.layout == "padded" else laid_out(groups, layout=self.layout)
        return _Pass(numbers, packed, len(rows), max(rows))

    def _size(self, *passes: _Pass) -> int:
        if self.layout == "padded":
            return sum(one.rows for one in passes) * max(one.width for one in passes)
        return sum(one.packed for one in passes)


@dataclass
class _Pass:
    """Examples by their numbers: positions if packed; rows and the longest of them if padded."""

    numbers: list[int]
    packed: int
    rows: int
    width: int

    def add(self, other: _Pass) -> None:
        self.numbers += other.numbers
        self.packed += other.packed
        self.rows += other.rows
        self.width = max(self.width, other.width)
