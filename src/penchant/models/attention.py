"""Attention over the packed shared-prompt layout, through transformers' public hook.

`scaled_dot_product_attention` runs segment by segment on the CPU; FlexAttention runs the whole row
with one block mask on CUDA. The segment table travels to every layer as a keyword argument of
the model's forward, so no model code is patched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from penchant.data.batch import Segments

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from penchant.models.mixers import MixerLayout

NAME = "penchant_packed"


class SegmentTable:
    """The groups of one packed row, with the masks that attention needs, built once a batch."""

    def __init__(self, groups: tuple[Segments, ...], kernel: str) -> None:
        assert kernel in ("sdpa", "flex")
        self.groups = groups
        self.kernel = kernel
        self._masks: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}
        self._block_mask: BlockMask | None = None
        self._mixer_layout: MixerLayout | None = None

    def mask(self, prompt: int, completion: int, like: Tensor) -> Tensor:
        """Additive `[completion, prompt + completion]`: the whole prompt, then causal."""
        key = (prompt, completion, like.dtype, like.device)
        if key not in self._masks:
            # One mask serves every piece of these lengths in every layer.
            later = like.new_full((completion, completion), float("-inf")).triu(1)
            seen = like.new_zeros(completion, prompt)
            self._masks[key] = torch.cat([seen, later], dim=1)  # [completion, prompt + completion]
        return self._masks[key]

    def block_mask(self, length: int, device: torch.device) -> BlockMask:
        """The same rule for a whole row of `length` positions, as FlexAttention takes it."""
        if self._block_mask is None:
            from torch.nn.attention.flex_attention import create_block_mask

            self._block_mask = create_block_mask(
                packed_mask_rule(self.groups, length, device), None, None, length, length, device
            )
        return self._block_mask

    def mixer_layout(self, device: torch.device) -> MixerLayout:
        """The rows that layers with a state along the sequence work on."""
        if self._mixer_layout is None:
            from penchant.models.mixers import MixerLayout

            self._mixer_layout = MixerLayout(self.groups, device)
        return self._mixer_layout


def packed_mask_rule(groups: tuple[Segments, ...], length: int, device: torch.device) -> Any:
    """Who may attend to whom: the own group's prompt and the own completion, never later."""
    # Written on the CPU, position by position, and moved once.
    group_of = torch.full((length,), -1, dtype=torch.int32)  # [T]
    segment_of = torch.full((length,), -1, dtype=torch.int32)  # [T]; 0 is a prompt
    for number, group in enumerate(groups):
        group_of[group.start : group.end] = number
        segment_of[group.start : group.prompt_end] = 0
        for i, (begin, end) in enumerate(group.completions, start=1):
            segment_of[begin:end] = i
    group_of, segment_of = group_of.to(device), segment_of.to(device)

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_group = group_of[query] == group_of[key]
        visible = (segment_of[key] == 0) | (segment_of[key] == segment_of[query])
        return same_group & visible & (key <= query)

    return rule


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: SegmentTable,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend over one packed row.

    Args:
        query: `[1, heads, T, head_dim]`; key and value: `[1, kv_heads, T, head_dim]`.
        segments: the row's groups; the model's forward was given it as `segments=`.

    Returns:
        `[1, T, heads, head_dim]` and None for the attention weights.
    """
    assert query.shape[0] == 1, "a packed batch is one row"
    if dropout or softcap:
        # models/scoring.py sends such models to the plain layout before they get here.
        raise ValueError("packed attention has neither attention dropout nor soft-capping")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        # Rotary embeddings leave fp32 beside half-precision values; own kernels are not autocast.
        half = torch.get_autocast_dtype(device)
        query, key, value = query.to(half), key.to(half), value.to(half)
    if segments.kernel == "flex":
        out = _flex(query, key, value, segments, scaling)
    elif query.device.type == "cpu":
        out = _SegmentAttention.apply(query, key, value, segments, scaling)
    else:
        out = _sliced(query, key, value, segments, scaling)
    return out, None


def _no_mask(*_: Any, **__: Any) -> None:
    """The segment table says who attends to whom: transformers need not build a mask."""


def register() -> None:
    """Tell transformers about the packed attention; safe to call more than once."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Queries `[begin, end)`, which see the keys of `[prompt_start, prompt_end)` and themselves."""

    prompt_start: int
    prompt_end: int
    begin: int
    end: int

    @property
    def contiguous(self) -> bool:
        return self.begin <= self.prompt_end

    def keys(self, x: Tensor) -> Tensor:
        """The rows of `[1, heads, T, dim]` that the queries may see; a copy unless contiguous."""
        if self.contiguous:
            return x[:, :, self.prompt_start : self.end]
        return torch.cat(
            [x[:, :, self.prompt_start : self.prompt_end], x[:, :, self.begin : self.end]], dim=2
        )

    def add_to_keys(self, total: Tensor, part: Tensor) -> None:
        """Add a gradient of `keys(x)` to the gradient of x."""
        if self.contiguous:
            total[:, :, self.prompt_start : self.end] += part
            return
        prompt_length = self.prompt_end - self.prompt_start
        total[:, :, self.prompt_start : self.prompt_end] += part[:, :, :prompt_length]
        total[:, :, self.begin : self.end] += part[:, :, prompt_length:]

    def mask(self, table: SegmentTable, like: Tensor) -> Tensor | None:
        """None where plain causal attention over the keys is the right thing.

        Otherwise `[queries, keys]`: the kernels align a causal mask with the first key, but the
        queries of a later completion begin after the prompt's keys.
        """
        if self.contiguous:
            return None
        return table.mask(self.prompt_end - self.prompt_start, self.end - self.begin, like)


def _pieces(groups: tuple[Segments, ...]) -> list[_Piece]:
    """Each group's prompt together with its first completion, then every further completion.

    Prompt and first completion lie side by side: one causal sequence needs no mask and no copy.
    """
    pieces = []
    for group in groups:
        (_, first_end), *others = group.completions
        pieces.append(_Piece(group.start, group.prompt_end, group.start, first_end))
        pieces.extend(_Piece(group.start, group.prompt_end, b, e) for b, e in others)
    return pieces


class _SegmentAttention(torch.autograd.Function):
    """The CPU's flash kernel for each piece, gradients written in place.

    Slicing q, k and v outside of one function would make autograd allocate and add a full-size
    gradient for every slice: quadratic in the number of groups. In the comments Q is the number of
    a piece's queries and K of the keys that they see.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: SegmentTable, scale: float | None
    ) -> Tensor:
        # Laid out as the caller takes it: written once, never transposed.
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])  # [1, T, heads, dim]
        logsumexps = []
        for piece in _pieces(table.groups):
            mask = piece.mask(table, q)  # [Q, K] or None
            rows = slice(piece.begin, piece.end)
            # part: [1, heads, Q, dim]; logsumexp: one number per query, all that backward needs
            # to form the attention weights again.
            part, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows],  # [1, heads, Q, dim]
                piece.keys(k),  # [1, kv_heads, K, dim]
                piece.keys(v),
                is_causal=mask is None,
                attn_mask=mask,
                scale=scale,
            )
            out[:, rows] = part.transpose(1, 2)  # [1, Q, heads, dim]
            logsumexps.append(logsumexp)
        ctx.table, ctx.scale = table, scale
        ctx.save_for_backward(q, k, v, out, *logsumexps)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *logsumexps = ctx.saved_tensors
        # Every query belongs to one piece, so dq is written; a prompt's keys are seen by several
        # pieces, so dk and dv are added to.
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for piece, logsumexp in zip(_pieces(ctx.table.groups), logsumexps, strict=True):
            mask = piece.mask(ctx.table, q)
            rows = slice(piece.begin, piece.end)
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_out[:, rows].transpose(1, 2),  # [1, heads, Q, dim]
                q[:, :, rows],
                piece.keys(k),
                piece.keys(v),
                out[:, rows].transpose(1, 2),
                logsumexp,
                0.0,  # dropout
                mask is None,  # causal
                attn_mask=mask,
                scale=ctx.scale,
            )
            dq[:, :, rows] = grads[0]  # [1, heads, Q, dim]
            piece.add_to_keys(dk, grads[1])  # [1, kv_heads, K, dim]
            piece.add_to_keys(dv, grads[2])
        return dq, dk, dv, None, None


def _sliced(q: Tensor, k: Tensor, v: Tensor, table: SegmentTable, scale: float | None) -> Tensor:
    """The same in public operations, for devices without a kernel of their own here."""
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])  # [1, T, heads, dim]
    for piece in _pieces(table.groups):
        mask = piece.mask(table, q)
        part = scaled_dot_product_attention(
            q[:, :, piece.begin : piece.end],
            piece.keys(k),
            piece.keys(v),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out[:, piece.begin : piece.end] = part.transpose(1, 2)  # [1, Q, heads, dim]
    return out


@cache
def _flex_kernel(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def _flex(q: Tensor, k: Tensor, v: Tensor, table: SegmentTable, scale: float | None) -> Tensor:
    out = _flex_kernel(q.is_cuda)(
        q,
        k,
        v,
        block_mask=table.block_mask(q.shape[2], q.device),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.transpose(1, 2)  # [1, T, heads, dim]
