"""The segments of one packed row: who may attend to whom, and what kernels need to know of it.

One rule holds in every kernel: a query sees the prompt and its own completion, never later; where
the layer has a window, only keys fewer than `window` positions back; where it has chunks, only keys
of its own chunk of positions. Positions restart at the prompt's end, so that a completion counts on
from its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.data.batch import Segments

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import TokenBatch

# Queries that share one call where the layer has a window: fewer cost more calls, more compute
# more keys that nobody sees.
BLOCK = 64


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back the queries of a layer see.

    Attributes:
        window: keys fewer than this many positions back; None: all.
        chunk: keys of the same chunk of this many positions; None: all.
    """

    window: int | None = None
    chunk: int | None = None

    def __getitem__(self, queries: Any) -> Reach:
        """How far some of the queries see: Gemma 4 cuts masks to the queries that it keeps."""
        return self


FULL = Reach()


@dataclass(frozen=True, slots=True)
class LayerRule:
    """What a layer does to its scores.

    Attributes:
        reach: whom its queries see.
        scale: what `q @ k` is multiplied by.
        cap: scores become `cap * tanh(scores / cap)`; None: as they are.
        sinks: `[heads]` or None; a score more in each softmax, without a value.
    """

    reach: Reach
    scale: float
    cap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries of the rows `[begin, end)`, and the row ranges of the keys that they see.

    The keys lie at consecutive positions and end with the queries' own: query i of Q sees at most
    the first `K - Q + 1 + i` of the K keys.
    """

    begin: int
    end: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def num_queries(self) -> int:
        return self.end - self.begin

    @property
    def num_keys(self) -> int:
        return sum(end - begin for begin, end in self.ranges)

    def keys(self, x: Tensor) -> Tensor:
        """`[1, heads, K, dim]` of `[1, heads, T, dim]`; a copy only where there are two ranges."""
        parts = [x[:, :, begin:end] for begin, end in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add a gradient of `keys(x)` to the gradient of x."""
        done = 0
        for begin, end in self.ranges:
            total[:, :, begin:end] += part[:, :, done : done + end - begin]
            done += end - begin

    def is_causal(self, reach: Reach) -> bool:
        """Whether plain causal attention over the keys is the right thing: no mask is needed.

        The kernels align a causal mask with the first key.
        """
        every = reach.window is None or self.num_keys <= reach.window
        return every and self.num_queries == self.num_keys


class SegmentTable:
    """The groups of one packed row, with what attention works out of them once a batch."""

    def __init__(self, groups: tuple[Segments, ...], kernel: str) -> None:
        assert kernel in ("sdpa", "flex", "varlen")
        self.groups = groups
        self.kernel = kernel
        self._pieces: dict[tuple[Reach, int | None], list[Piece]] = {}
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self.kept: dict[Any, Any] = {}
        """What a kernel of another device keeps for the batch."""

    @classmethod
    def of(cls, batch: TokenBatch, kernel: str) -> SegmentTable:
        """The table of a packed batch, one for all passes over it: the reference's too."""
        assert batch.segments is not None
        name = f"segments {kernel}"
        if name not in batch.kept:
            batch.kept[name] = cls(batch.segments, kernel)
            # A mask for transformers that leaves out nothing; the segments say who sees whom.
            batch.kept["seen"] = torch.ones_like(batch.input_ids, dtype=torch.bool)
        table: SegmentTable = batch.kept[name]
        return table

    @property
    def length(self) -> int:
        """Positions of the row."""
        return self.groups[-1].end

    def pieces(self, reach: Reach, block: int | None = None) -> list[Piece]:
        """The row in pieces, of at most `block` queries each."""
        key = (reach, block)
        if key not in self._pieces:
            self._pieces[key] = list(pieces(self.groups, reach, block))
        return self._pieces[key]

    def mask(self, piece: Piece, reach: Reach, like: Tensor) -> Tensor:
        """Additive `[Q, K]`: causal, within the window.

        Who sees whom depends on the distance alone, so that every mask is the lower right corner
        of the largest one.
        """
        key = (reach, like.dtype, like.device)
        queries, keys = piece.num_queries, piece.num_keys
        corner = self._masks.get(key)
        if corner is None or corner.shape[0] < queries or corner.shape[1] < keys:
            lists = [found for (own, _), found in self._pieces.items() if own == reach]
            every = [p for one in lists for p in one if not p.is_causal(reach)]
            queries_of_all = max(queries, *(p.num_queries for p in every), 0)
            keys_of_all = max(keys, *(p.num_keys for p in every), 0)
            corner = distance_mask(queries_of_all, keys_of_all, reach.window or keys_of_all, like)
            self._masks[key] = corner
        return corner[-queries:, -keys:]


def distance_mask(queries: int, keys: int, window: int, like: Tensor) -> Tensor:
    """Additive `[Q, K]`, of queries at the positions of the last keys."""
    ones = torch.ones(queries, keys, dtype=torch.bool, device=like.device)
    # Query i stands at key K - Q + i.
    seen = ones.tril(keys - queries) & ones.triu(keys - queries - window + 1)
    return like.new_full((queries, keys), float("-inf")).masked_fill_(seen, 0.0)


def pieces(groups: tuple[Segments, ...], reach: Reach, block: int | None) -> Iterator[Piece]:
    """Each group's prompt together with its first completion, then every further completion.

    Prompt and first completion lie side by side: one causal sequence needs no mask and no copy.
    """
    for group in groups:
        prompt_length = group.prompt_end - group.start
        for number, (begin, end) in enumerate(group.completions):
            # Of this completion, row = position + shift.
            shift = begin - prompt_length
            first = 0 if number == 0 else prompt_length
            for query, last, key in _blocks(first, end - shift, reach, block):
                own = (key + shift, last + shift)
                if shift == group.start or key >= prompt_length:
                    yield Piece(query + shift, last + shift, (own,))
                else:
                    shared = (key + group.start, group.prompt_end)
                    yield Piece(query + shift, last + shift, (shared, (begin, last + shift)))


def _blocks(
    first: int, end: int, reach: Reach, block: int | None
) -> Iterator[tuple[int, int, int]]:
    """Positions `[first, end)` as half-open blocks of queries, each with the first key it sees."""
    while first < end:
        last, key = end, 0
        if reach.chunk is not None:
            key = first // reach.chunk * reach.chunk
            last = min(last, key + reach.chunk)
        elif reach.window is not None:
            key = max(0, first - reach.window + 1)
            # Up to the window's size nothing is out of sight.
            last = min(last, max(reach.window, first + BLOCK))
        if block is not None:
            last = min(last, first + block)
        yield first, last, key
        first = last
