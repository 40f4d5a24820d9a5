"""Attention in public operations, with its own backward: capped scores (Gemma 2), any device.

Scores of one piece of queries at a time are formed, forward and again backward: never those of a
whole row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.segments import Piece, Reach, SegmentTable

    Three = tuple[Tensor, Tensor, Tensor]
    """Queries, keys and values of one piece, or their gradients."""


@dataclass(frozen=True, slots=True)
class Dense:
    """Scores `scale * q @ k`, or `cap * tanh(scale * q @ k / cap)`, under an additive mask.

    Arithmetic is in fp32 or better. In the comments Q is the number of queries, K of keys, and
    each of the `kv` heads of keys serves `g` heads of queries.
    """

    scale: float
    cap: float | None
    block: int = 128
    """Queries at a time: what a causal mask hides is left out in blocks of this size."""

    @staticmethod
    def mask(table: SegmentTable, piece: Piece, reach: Reach, like: Tensor) -> Tensor:
        """Additive `[Q, K]`."""
        return table.mask(piece, reach, like)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Output `[1, heads, Q, dim]`, and the logsumexp of the scores `[1, heads, Q]`.

        Args:
            q: `[1, heads, Q, dim]`; k and v: `[1, kv, K, dim]`.
            mask: `[Q, K]`.
        """
        grouped, k, v = _grouped(q, k), _wide(k), _wide(v)  # [1, kv, g, Q, dim], [1, kv, K, dim]
        scores = self._scores(grouped, k)[0].add_(mask)  # [1, kv, g, Q, K]
        logsumexp = scores.logsumexp(-1, keepdim=True)
        out = _times(scores.sub_(logsumexp).exp_(), v)  # [1, kv, g, Q, dim]
        return out.flatten(1, 2).to(q.dtype), logsumexp.squeeze(-1).flatten(1, 2)

    def backward(
        self, grad: Tensor, inputs: Three, outputs: tuple[Tensor, Tensor], mask: Tensor
    ) -> Three:
        """The gradients of q, k and v.

        Args:
            grad: of the output.
            inputs, outputs, mask: what `forward` took and gave.
        """
        (q, k, v), (out, logsumexp) = inputs, outputs
        kv = k.shape[1]
        keys, values = _wide(k), _wide(v)
        queries, grad, out = (_grouped(x, k) for x in (q, grad, out))  # [1, kv, g, Q, dim]
        scores, tanh = self._scores(queries, keys)  # [1, kv, g, Q, K]
        weights = scores.add_(mask).sub_(logsumexp.unflatten(1, (kv, -1)).unsqueeze(-1)).exp_()
        d_values = _transposed_times(weights, grad)  # [1, kv, K, dim]
        # d softmax = weights * (d weights - sum(d out * out)).
        d_scores = _times(grad, values.transpose(-1, -2))
        d_scores.sub_((grad * out).sum(-1, keepdim=True)).mul_(weights)
        if tanh is not None:  # d tanh = 1 - tanh^2
            d_scores.addcmul_(d_scores * tanh, tanh, value=-1)
        d_scores.mul_(self.scale)
        d_queries = _times(d_scores, keys).flatten(1, 2)  # [1, heads, Q, dim]
        d_keys = _transposed_times(d_scores, queries)
        return d_queries.to(q.dtype), d_keys.to(k.dtype), d_values.to(v.dtype)

    def _scores(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[1, kv, g, Q, K]`, and the tanh in them, which backward needs."""
        scores = _times(queries, keys.transpose(-1, -2)).mul_(self.scale)
        if self.cap is None:
            return scores, None
        tanh = scores.div_(self.cap).tanh_()
        return tanh * self.cap, tanh


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """`[1, kv, g, Q, dim]`: the heads that share keys beside each other."""
    return _wide(x).unflatten(1, (k.shape[1], -1))


def _times(x: Tensor, y: Tensor) -> Tensor:
    """`[1, kv, g, Q, n]`: x `[1, kv, g, Q, m]` times y `[1, kv, m, n]`, one product a kv head."""
    return (x.flatten(2, 3) @ y).unflatten(2, x.shape[2:4])


def _transposed_times(x: Tensor, y: Tensor) -> Tensor:
    """`[1, kv, m, n]`: the sum over heads and queries of x `[.., m]` times y `[.., n]`."""
    return x.flatten(2, 3).transpose(-1, -2) @ y.flatten(2, 3)
