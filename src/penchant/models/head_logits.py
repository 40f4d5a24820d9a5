"""All logits of a head at once, not rounded to half precision: for what samples or compares all.

Shapes are named as in `vocabulary.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper

from penchant.models.linear import is_low_rank, is_plain
from penchant.models.logprobs import effective_head
from penchant.models.vocabulary import product, product_dtypes

if TYPE_CHECKING:
    from torch import Tensor


def rounded(factor: Tensor, dtypes: tuple[torch.dtype, torch.dtype]) -> Tensor:
    """A factor as `product` reads it: rounded to the first dtype, held in the second off CUDA."""
    dtype, accumulate = dtypes
    return factor.to(dtype) if factor.is_cuda else factor.to(dtype).to(accumulate)


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[N, V]` raw logits in fp32 or better, as the walk has them, differentiable in all three.

    Args:
        hidden: `[N, H]`; weight: `[V, H]`; bias: `[V]`.
    """
    logits: Tensor = _HeadProduct.apply(hidden, weight)
    return logits if bias is None else logits + bias.to(logits.dtype)


class _HeadProduct(torch.autograd.Function):
    """`hidden weight^T`: factors rounded as autocast would, the result not rounded after it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.dtypes = product_dtypes(hidden.device.type, weight)
        ctx.save_for_backward(hidden, weight)
        dtype, accumulate = ctx.dtypes
        return product(hidden.to(dtype), weight.to(dtype).t(), accumulate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        dtype, accumulate = ctx.dtypes
        grad = grad.to(dtype)  # [N, V]
        d_hidden = d_weight = None
        if ctx.needs_input_grad[0]:
            d_hidden = product(grad, weight.to(dtype), accumulate).to(hidden.dtype)  # [N, H]
        if ctx.needs_input_grad[1]:
            d_weight = product(grad.t(), hidden.to(dtype), accumulate).to(weight.dtype)  # [V, H]
        return d_hidden, d_weight


@contextmanager
def rounding_inputs_alone(head: Any) -> Iterator[None]:
    """Let a head give its results in fp32 for a while where half precision would round them.

    The factors are rounded as ever. A head that computes in fp32, is quantised, has an adapter
    that is more than two matrices, or a forward of its own (hooks of other libraries) stays as it
    is.
    """
    base: Any = head
    if isinstance(base, ModulesToSaveWrapper | TrainableTokensWrapper):
        base = base.original_module
    ours = "forward" not in vars(head)
    if isinstance(base, LoraLayer):
        own: Any = base
        ours &= all(is_low_rank(own, name) for name in own.active_adapters if name in own.lora_A)
        base = base.get_base_layer()
    ours &= is_plain(base)
    dtypes = product_dtypes(base.weight.device.type, base.weight) if ours else None
    if dtypes is None or dtypes[0] == dtypes[1]:
        yield
        return
    known: list[Tensor] = []  # the weights, rounded once for all tokens of an answer

    def forward(hidden: Tensor) -> Tensor:
        states, matrix, bias = effective_head(hidden.flatten(0, -2), head)
        if torch.is_grad_enabled() or matrix is not base.weight:
            logits = head_logits(states, matrix, bias)
        else:
            if not known:
                known.append(rounded(matrix, dtypes))
            logits = product(rounded(states, dtypes), known[0].t(), dtypes[1])
            logits = logits if bias is None else logits + bias.to(logits.dtype)
        return logits.unflatten(0, hidden.shape[:-1])

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
