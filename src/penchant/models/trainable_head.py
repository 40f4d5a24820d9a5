"""Log-probabilities under a head that is trained too: the vocabulary is walked again in backward.

Backward computes the logits again, except for those that a buffer of fixed size could keep. Shapes
are named as in `vocabulary.py`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from penchant.models import vocabulary
from penchant.models.vocabulary import Also, Head, product, walk_vocabulary

if TYPE_CHECKING:
    from torch import Tensor


def trained_logprobs(head: Head, hidden: Tensor, targets: Tensor, also: Also) -> Tensor:
    """`[N]`, or with `also` `[2, N]`: log-probs under a head that gets gradients as well.

    The walk here computes them, unless liger-kernel has a kernel for this device that agrees and
    is quicker.
    """

    def own(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        walked = Head(hidden, weight, head.bias, head.transform)
        logprobs, second = TrainableHead.apply(hidden, weight, head.bias, walked, targets, also)
        return torch.stack([logprobs, second]) if also else logprobs

    if hidden.is_cuda and also != "collisions":
        from penchant.models import liger

        if liger.serves(hidden, head.weight, head.bias, head.transform):
            other = partial(liger.liger_logprobs, transform=head.transform, also=also)
            asked = head.transform, also
            if liger.chosen(own, other, hidden, head.weight, targets, asked=asked):
                return other(hidden, head.weight, targets)
    return own(hidden, head.weight, targets)


class TrainableHead(torch.autograd.Function):
    """Keep the log-sum-exp in forward, and walk the vocabulary again in backward.

    The weights and the bias stand beside the head that holds them, because autograd gives
    gradients to arguments only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: Tensor,
        also: Also,
    ) -> tuple[Tensor, Tensor]:
        # The derivative of a soft cap needs the logits, which the exponentials have overwritten.
        keeps = (
            head.transform.softcap is None and len(hidden) * len(weight) <= vocabulary.KEPT_ELEMENTS
        )
        ctx.kept = [] if keeps else None
        walked = walk_vocabulary(head, hidden, targets, also=also, kept=ctx.kept)
        ctx.head = head
        ctx.save_for_backward(hidden, targets, walked.logsumexp)
        ctx.mark_non_differentiable(walked.second)
        return walked.logprobs, walked.second

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, logsumexp = ctx.saved_tensors  # [N, H], [N], [N]
        head, kept = ctx.head, None if ctx.kept is None else iter(ctx.kept)
        grad = grad.to(head.accumulate)  # [N]
        d_hidden = torch.zeros_like(hidden, dtype=head.accumulate)  # [N, H]
        d_weight = torch.empty_like(head.weight, dtype=head.accumulate)  # [V, H]
        d_bias = None if head.bias is None else d_weight.new_zeros(len(head.weight))  # [V]
        inputs = hidden.to(head.dtype)  # [N, H]
        for first, chunk, rows in head.blocks(len(hidden)):  # chunk: [C, H]
            saved = None if kept is None else next(kept)
            own = inputs[rows]  # [R, H]
            d_logits = _d_logits(
                head, own, targets[rows], logsumexp[rows], grad[rows], first, chunk, saved
            )  # [R, C]
            tokens = slice(first, first + len(chunk))
            if d_bias is not None:
                d_bias[tokens] += d_logits.sum(0)  # [C]
            d_logits = d_logits.to(head.dtype)
            d_hidden[rows] += product(d_logits, chunk, head.accumulate)  # [R, H]
            # The first rows write, so that nothing has to be zeroed before.
            combine = set_product if rows.start == 0 else add_product
            combine(d_weight[tokens], d_logits.t(), own)  # [C, H]
        d_bias = None if d_bias is None else d_bias.to(head.weight.dtype)
        return d_hidden.to(hidden.dtype), d_weight.to(head.weight.dtype), d_bias, None, None, None


def _d_logits(
    head: Head,
    inputs: Tensor,
    targets: Tensor,
    logsumexp: Tensor,
    grad: Tensor,
    first: int,
    chunk: Tensor,
    saved: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """`[R, C]`: the gradient of one chunk's logits, grad * slope * (onehot(target) - softmax).

    `saved` are the exponentials `[R, C]` and their maximum `[R]`, where forward kept them.
    """
    if saved is None:
        logits = head.logits(inputs, first, chunk)  # [R, C]
        slope = head.transform.derivative(logits)
        probabilities = logits.sub_(logsumexp.unsqueeze(1)).exp_()  # [R, C]
        d_logits = probabilities.mul_(-grad.unsqueeze(1))
    else:
        exponentials, maximum = saved
        slope = head.transform.scale / head.transform.temperature
        # One factor per row turns exponentials into probabilities and brings in the gradient;
        # out of place, so that backward can run twice over what was kept.
        factor = (maximum - logsumexp).exp() * -grad  # [R]
        d_logits = exponentials * factor.unsqueeze(1)  # [R, C]
    local = targets - first  # [R]
    # Every row adds to one place, and 0 where its target is in another chunk: to select the rows
    # would wait for the GPU.
    own = torch.where((local >= 0) & (local < len(chunk)), grad, 0.0)  # [R]
    d_logits.scatter_add_(1, local.clamp(0, len(chunk) - 1).unsqueeze(1), own.unsqueeze(1))
    if isinstance(slope, torch.Tensor) or slope != 1.0:
        d_logits *= slope
    return d_logits


# Rows of a product that are formed apart before they are added where they belong.
ROWS_APART = 4096


def set_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total = a @ b`, without a temporary of its size."""
    if total.dtype == a.dtype:
        torch.mm(a, b, out=total)
    else:
        for part, own in zip(total.split(ROWS_APART), a.split(ROWS_APART), strict=True):
            part.copy_(product(own, b, total.dtype))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b`, without a temporary of its size."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        for part, own in zip(total.split(ROWS_APART), a.split(ROWS_APART), strict=True):
            part += product(own, b, total.dtype)
