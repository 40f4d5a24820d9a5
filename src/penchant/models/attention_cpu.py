"""Attention over a packed row on the CPU: one kernel call for each piece, one autograd function.

The kernel is PyTorch's flash attention. Sinks are laid over its output; capped scores have a kernel
of their own (`models/attention_dense.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.segments import LayerRule, Piece, Reach, SegmentTable

    Inputs = tuple[Tensor, Tensor, Tensor]
    """Queries, keys and values of one piece."""


def attend(q: Tensor, k: Tensor, v: Tensor, table: SegmentTable, rule: LayerRule) -> Tensor:
    """Attend piece by piece: `[1, T, heads, dim']`."""
    dim, value_dim = q.shape[-1], v.shape[-1]
    # Latent attention has narrower values than keys; the kernel wants them alike.
    if value_dim < dim:
        v = pad(v, (0, dim - value_dim))
    elif value_dim > dim:
        q, k = (pad(x, (0, value_dim - dim)) for x in (q, k))
    out: Tensor = SegmentAttention.apply(q, k, v, rule.sinks, table, rule.reach, kernel_of(rule))
    return out[..., :value_dim]


class SegmentAttention(torch.autograd.Function):
    """One kernel call for each piece, gradients written in place.

    Slicing q, k and v outside of one function would make autograd allocate and add a full-size
    gradient for every slice: quadratic in the number of groups. In the comments Q is the number of
    a piece's queries and K of the keys that they see.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        table: SegmentTable,
        reach: Reach,
        kernel: Any,
    ) -> Tensor:
        # Laid out as the caller takes it: written once, never transposed.
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])  # [1, T, heads, dim]
        logsumexps = []
        for piece in table.pieces(reach, kernel.block):
            mask = kernel.mask(table, piece, reach, q)  # [Q, K] or None
            rows = slice(piece.begin, piece.end)
            # part: [1, heads, Q, dim]; logsumexp: one number per query, all that backward needs
            # to form the attention weights again.
            part, logsumexp = kernel.forward(
                q[:, :, rows],  # [1, heads, Q, dim]
                piece.keys(k),  # [1, kv_heads, K, dim]
                piece.keys(v),
                mask,
            )
            if sinks is not None:
                part = part * shares_without_sink(logsumexp, sinks).to(part.dtype)
            out[:, rows] = part.transpose(1, 2)  # [1, Q, heads, dim]
            logsumexps.append(logsumexp)
        ctx.table, ctx.reach, ctx.kernel = table, reach, kernel
        ctx.save_for_backward(q, k, v, sinks, out, *logsumexps)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, *logsumexps = ctx.saved_tensors
        table, reach, kernel = ctx.table, ctx.reach, ctx.kernel
        # Every query belongs to one piece, so dq is written; a prompt's keys are seen by several
        # pieces, so dk and dv are added to.
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # Summed over all pieces, in fp32 or better: in bf16 a long sum stops growing.
        d_sinks = None
        if sinks is not None:
            wide = torch.promote_types(sinks.dtype, torch.float32)
            d_sinks = torch.zeros_like(sinks, dtype=wide)
        pieces = table.pieces(reach, kernel.block)
        for piece, logsumexp in zip(pieces, logsumexps, strict=True):
            rows = slice(piece.begin, piece.end)
            grad = grad_out[:, rows].transpose(1, 2)  # [1, heads, Q, dim]
            own = out[:, rows].transpose(1, 2)
            if d_sinks is not None:
                # With s the share that is left to keys, out = s * (softmax @ v). Kernels take off
                # sum(grad * out) where the softmax is differentiated: given the output that has
                # the sink in it and s * grad, what they take off is right for s as well.
                left = shares_without_sink(logsumexp, sinks)  # [1, heads, Q, 1]
                taken = (grad.to(left.dtype) * own).sum(-1, keepdim=True)
                d_sinks -= ((1 - left) * taken).sum((0, 2, 3)).to(d_sinks.dtype)
                grad = grad * left.to(grad.dtype)
            grads = kernel.backward(
                grad,
                (q[:, :, rows], piece.keys(k), piece.keys(v)),
                (own, logsumexp),
                kernel.mask(table, piece, reach, q),
            )
            dq[:, :, rows] = grads[0]  # [1, heads, Q, dim]
            piece.add_to_keys(dk, grads[1])  # [1, kv_heads, K, dim]
            piece.add_to_keys(dv, grads[2])
        if d_sinks is not None:
            d_sinks = d_sinks.to(sinks.dtype)
        return dq, dk, dv, d_sinks, None, None, None


def shares_without_sink(logsumexp: Tensor, sinks: Tensor) -> Tensor:
    """What is left of each softmax for the keys, `[1, heads, Q, 1]`.

    `exp(lse) / (exp(lse) + exp(sink)) = sigmoid(lse - sink)`.

    Args:
        logsumexp: `[1, heads, Q]`, of the keys' scores.
        sinks: `[heads]`.
    """
    return torch.sigmoid(logsumexp - sinks.to(logsumexp.dtype)[:, None]).unsqueeze(-1)


def kernel_of(rule: LayerRule) -> Any:
    """The kernel of one piece: PyTorch's own, or one of public operations for capped scores."""
    if rule.cap is None:
        return _Flash(rule.scale)
    from penchant.models.attention_dense import Dense

    return Dense(rule.scale, rule.cap)


@dataclass(frozen=True, slots=True)
class _Flash:
    """The CPU's flash kernel."""

    scale: float
    block: None = None
    """It leaves out what a causal mask hides by itself."""

    @staticmethod
    def mask(table: SegmentTable, piece: Piece, reach: Reach, like: Tensor) -> Tensor | None:
        return None if piece.is_causal(reach) else table.mask(piece, reach, like)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, is_causal=mask is None, attn_mask=mask, scale=self.scale
        )

    def backward(
        self, grad: Tensor, inputs: Inputs, outputs: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Any:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, *inputs, *outputs, 0.0, mask is None, attn_mask=mask, scale=self.scale
        )
