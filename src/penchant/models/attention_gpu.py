"""Attention over a packed row on devices other than the CPU.

`flex` runs the whole row with one block mask for each kind of layer. `varlen` runs PyTorch's
flash kernel for sequences of many lengths on keys that are gathered. `sdpa` runs piece by piece in
public operations, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from penchant.core.machine import to_device
from penchant.models.attention_cpu import SegmentAttention, shares_without_sink
from penchant.models.attention_dense import Dense
from penchant.models.places import places_of
from penchant.models.segments import LayerRule, Reach, SegmentTable

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask


def mask_rule(table: SegmentTable, reach: Reach, device: torch.device) -> Any:
    """Who may attend to whom, as FlexAttention asks: see `models/segments.py`."""
    group_of, segment_of, position_of = places_of(table, device)  # [T] each

    def packed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_group = group_of[query] == group_of[key]
        visible = (segment_of[key] == 0) | (segment_of[key] == segment_of[query])
        return same_group & visible & (key <= query)

    window, chunk = reach.window or table.length, reach.chunk or table.length

    def windowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = position_of[query] - position_of[key] < window
        return packed(batch, head, query, key) & near

    def chunked(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_chunk = position_of[query] // chunk == position_of[key] // chunk
        return packed(batch, head, query, key) & same_chunk

    if reach.window is not None:
        return windowed
    return packed if reach.chunk is None else chunked


TILE = 128
"""Side of the blocks that FlexAttention computes or leaves out."""


def tiles(table: SegmentTable, reach: Reach) -> tuple[Tensor, Tensor]:
    """Blocks of the row's `[T, T]` in which anything is seen, and those that are seen whole.

    Worked out from the segments, block by block: `[T, T]` itself is never formed.

    Returns:
        Two of `[blocks, blocks]`, queries by keys.
    """
    count = -(-table.length // TILE)
    seen = torch.zeros(count, count, dtype=torch.bool)
    whole = torch.zeros(count, count, dtype=torch.bool)
    # A window is taken off here, to the row; pieces would have cut it to blocks of their own.
    for piece in table.pieces(Reach(chunk=reach.chunk)):
        before = piece.num_keys - piece.num_queries
        for tile in range(piece.begin // TILE, -(-piece.end // TILE)):
            begin, end = max(piece.begin, tile * TILE), min(piece.end, (tile + 1) * TILE)
            # Of the piece's keys in order: the last that the first and the last query see.
            first, last = before + begin - piece.begin, before + end - 1 - piece.begin
            window = reach.window or piece.num_keys
            offset = 0
            for start, stop in piece.ranges:
                shift = start - offset  # row of a key = its number + shift
                offset += stop - start
                nearest = slice_of(
                    max(start, first - window + 1 + shift), min(stop, last + 1 + shift)
                )
                seen[tile, nearest] = True
                if end - begin == TILE:
                    low, high = max(start, last - window + 1 + shift), min(stop, first + 1 + shift)
                    whole[tile, -(-low // TILE) : max(0, high // TILE)] = True
    return seen, whole


def slice_of(begin: int, end: int) -> slice:
    """The blocks that rows `[begin, end)` touch; none where that is empty."""
    return slice(begin // TILE, -(-end // TILE)) if begin < end else slice(0, 0)


def block_mask(table: SegmentTable, reach: Reach, device: torch.device) -> BlockMask:
    """The rule as FlexAttention takes it, made once a batch for each kind of layer."""
    if reach not in table.kept:
        from torch.nn.attention.flex_attention import BlockMask

        seen, whole = tiles(table, reach)
        listed = [*_listed(seen & ~whole), *_listed(whole)]
        counts, order, full_counts, full_order = to_device(listed, device)
        table.kept[reach] = BlockMask.from_kv_blocks(
            counts,
            order,
            full_counts,
            full_order,
            BLOCK_SIZE=TILE,
            mask_mod=mask_rule(table, reach, device),
            seq_lengths=(table.length, table.length),
        )
    mask: BlockMask = table.kept[reach]
    return mask


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which: `[1, 1, n]`, `[1, 1, n, n]`."""
    counts = tiles.sum(1, dtype=torch.int32)
    # The blocks that count come first, in order.
    order = tiles.int().argsort(dim=1, descending=True, stable=True).int()
    return counts[None, None], order[None, None]


@cache
def _flex_kernel(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def flex(q: Tensor, k: Tensor, v: Tensor, table: SegmentTable, rule: LayerRule) -> Tensor:
    """Attend over the whole row at once: `[1, T, heads, dim']`."""
    out = _flex_kernel(q.is_cuda)(
        q,
        k,
        v,
        score_mod=None if rule.cap is None else _capping(rule.cap),
        block_mask=block_mask(table, rule.reach, q.device),
        scale=rule.scale,
        enable_gqa=q.shape[1] != k.shape[1],
        **({} if rule.sinks is None else _logsumexp_too()),
    )
    if rule.sinks is not None:
        out, more = out
        logsumexp = more if isinstance(more, torch.Tensor) else more.lse  # [1, heads, T]
        out = out * shares_without_sink(logsumexp, rule.sinks).to(out.dtype)
    return out.transpose(1, 2)


def _logsumexp_too() -> dict[str, Any]:
    """The argument that has FlexAttention return it; torch 2.8 knows the older one alone."""
    from torch.nn.attention import flex_attention

    if hasattr(flex_attention, "AuxRequest"):
        return {"return_aux": flex_attention.AuxRequest(lse=True)}
    return {"return_lse": True}


@cache
def _capping(cap: float) -> Any:
    """One function for each cap: FlexAttention compiles for each that it has not seen."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@dataclass(frozen=True)
class Lengths:
    """Sequences of many lengths, as PyTorch's `varlen_attn` takes them.

    Attributes:
        keys: `[T_k]`, the row of each sequence's keys.
        query_starts: `[sequences + 1]`; queries are the row itself.
        key_starts: `[sequences + 1]`.
        most_queries: of one sequence.
        most_keys: of one sequence.
    """

    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int


def lengths(table: SegmentTable, reach: Reach, device: torch.device) -> Lengths:
    """The pieces of a row, whose keys end with their queries' own; the kernel has windows."""
    pieces = table.pieces(Reach(chunk=reach.chunk))
    queries = [piece.num_queries for piece in pieces]
    keys = [piece.num_keys for piece in pieces]
    rows = [torch.arange(begin, end) for piece in pieces for begin, end in piece.ranges]
    starts = [torch.tensor([0, *accumulate(n)], dtype=torch.int32) for n in (queries, keys)]
    at, query_starts, key_starts = to_device([torch.cat(rows), *starts], device)
    return Lengths(at, query_starts, key_starts, max(queries), max(keys))


def varlen(q: Tensor, k: Tensor, v: Tensor, table: SegmentTable, rule: LayerRule) -> Tensor:
    """Attend with flash attention for many lengths: `[1, T, heads, dim']`.

    Raises:
        ValueError: the layer caps its scores or has sinks, or PyTorch is too old.
    """
    if rule.cap is not None or rule.sinks is not None:
        raise ValueError("varlen attention has neither capped scores nor sinks")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ValueError(f"PyTorch {torch.__version__} has no varlen attention") from error

    kept = ("varlen", rule.reach.chunk)
    if kept not in table.kept:
        table.kept[kept] = lengths(table, rule.reach, q.device)
    at: Lengths = table.kept[kept]
    value_dim = v.shape[-1]
    if value_dim < k.shape[-1]:
        v = pad(v, (0, k.shape[-1] - value_dim))
    queries, keys, values = (x[0].transpose(0, 1) for x in (q, k, v))  # [T, heads, dim]
    out: Any = varlen_attn(
        queries,
        keys[at.keys],
        values[at.keys],
        at.query_starts,
        at.key_starts,
        at.most_queries,
        at.most_keys,
        scale=rule.scale,
        window_size=(-1 if rule.reach.window is None else rule.reach.window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[None, ..., :value_dim]


def sdpa(q: Tensor, k: Tensor, v: Tensor, table: SegmentTable, rule: LayerRule) -> Tensor:
    """Attend piece by piece in public operations: `[1, T, heads, dim']`."""
    if rule.cap is not None or rule.sinks is not None:
        kernel = Dense(rule.scale, rule.cap)
        dense: Tensor = SegmentAttention.apply(q, k, v, rule.sinks, table, rule.reach, kernel)
        return dense
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
    for piece in table.pieces(rule.reach):
        causal = piece.is_causal(rule.reach)
        part = scaled_dot_product_attention(
            q[:, :, piece.begin : piece.end],
            piece.keys(k),
            piece.keys(v),
            # Kernels of CUDA want a mask that is aligned in memory.
            attn_mask=None if causal else table.mask(piece, rule.reach, q).contiguous(),
            is_causal=causal,
            scale=rule.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out[:, piece.begin : piece.end] = part.transpose(1, 2)  # [1, Q, heads, dim']
    return out
