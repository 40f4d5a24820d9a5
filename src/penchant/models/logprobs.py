"""Log-probabilities of completion tokens from hidden states, without a `[N, V]` tensor.

With a frozen head the gradient with respect to the hidden states is formed in the same walk over
the vocabulary as the log-probs: d log p(y) / d logits = onehot(y) - softmax, which does not depend
on what comes after it except for one factor per token, so backward is a single multiplication.
A head that is trained too needs more: `trainable_head.py`. Shapes are named as in `vocabulary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from penchant.models.vocabulary import (
    AS_IS,
    Also,
    Head,
    LogitTransform,
    walk_vocabulary,
)

if TYPE_CHECKING:
    from torch import Tensor


def completion_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform = AS_IS,
    also: Also = None,
) -> Tensor:
    """log p(target) for every row.

    Args:
        hidden: `[N, H]`, hidden states at the positions that predict the targets.
        weight: `[V, H]`, the language-model head; bias: `[V]`.
        targets: `[N]`, token ids.
        transform: what the model does to its logits.
        also: what else of each row's distribution.

    Returns:
        `[N]` in fp32 (fp64 for fp64 weights), in nats; with `also` `[2, N]`, whose second row has
        no gradient.
    """
    trainable = weight.requires_grad or (bias is not None and bias.requires_grad)
    head = Head(hidden, weight, bias, transform)
    if trainable:
        from penchant.models.trainable_head import trained_logprobs

        return trained_logprobs(head, hidden, targets, also)
    logprobs, second = _FrozenHead.apply(hidden, head, targets, also)
    return torch.stack([logprobs, second]) if also else logprobs


class _FrozenHead(torch.autograd.Function):
    """Only the hidden states are trained: their gradient is formed during forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, also: Also
    ) -> tuple[Tensor, Tensor]:
        walked = walk_vocabulary(
            head, hidden, targets, direction=ctx.needs_input_grad[0], also=also
        )
        ctx.save_for_backward(walked.direction)
        ctx.mark_non_differentiable(walked.second)
        return walked.logprobs, walked.second

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors  # [N, H]
        return direction * grad.unsqueeze(1).to(direction.dtype), None, None, None
