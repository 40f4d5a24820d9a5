"""Log-probabilities of completion tokens from hidden states, without a `[N, V]` tensor.

With a frozen head the gradient with respect to the hidden states is formed in the same walk over
the vocabulary as the log-probs: d log p(y) / d logits = onehot(y) - softmax, which does not depend
on what comes after it except for one factor per token, so backward is a single multiplication.
With a trainable head backward walks the vocabulary once more; it computes the logits again, except
for those that a buffer of fixed size could keep. Shapes are named as in `vocabulary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from penchant.models.vocabulary import (
    AS_IS,
    Also,
    Head,
    LogitTransform,
    add_product,
    product,
    row_blocks,
    set_product,
    walk_vocabulary,
)

if TYPE_CHECKING:
    from torch import Tensor

# What a trainable head may keep of its exponentials for backward, however long the batch is.
KEPT_ELEMENTS = 1 << 25


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
        logprobs, second = _TrainableHead.apply(hidden, weight, bias, head, targets, also)
    else:
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


class _TrainableHead(torch.autograd.Function):
    """The head is trained too: keep the log-sum-exp and walk the vocabulary again in backward.

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
        keeps = head.transform.softcap is None and len(hidden) * len(weight) <= KEPT_ELEMENTS
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
        for rows in row_blocks(len(hidden)):
            inputs = hidden[rows].to(head.dtype)  # [R, H]
            for first, chunk in head.chunks():  # chunk: [C, H]
                saved = None if kept is None else next(kept)
                d_logits = _d_logits(
                    head, inputs, targets[rows], logsumexp[rows], grad[rows], first, chunk, saved
                )  # [R, C]
                vocabulary = slice(first, first + len(chunk))
                if d_bias is not None:
                    d_bias[vocabulary] += d_logits.sum(0)  # [C]
                d_logits = d_logits.to(head.dtype)
                d_hidden[rows] += product(d_logits, chunk, head.accumulate)  # [R, H]
                # The first rows write, so that nothing has to be zeroed before.
                combine = set_product if rows.start == 0 else add_product
                combine(d_weight[vocabulary], d_logits.t(), inputs)  # [C, H]
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
    here = ((local >= 0) & (local < len(chunk))).nonzero().squeeze(1)  # rows of these targets
    d_logits[here, local[here]] += grad[here]
    if isinstance(slope, torch.Tensor) or slope != 1.0:
        d_logits *= slope
    return d_logits


class Comparison(NamedTuple):
    """Two models on the same completion tokens; every tensor is `[N]`, in nats."""

    logprobs: Tensor
    ref_logprobs: Tensor
    kl: Tensor
    """KL(policy || reference) over the whole vocabulary, at each position."""
    entropy: Tensor
    """Of the policy."""


@torch.no_grad()
def compare_heads(
    policy: tuple[Tensor, Tensor, Tensor | None],
    reference: tuple[Tensor, Tensor, Tensor | None],
    targets: Tensor,
    *,
    transform: LogitTransform = AS_IS,
    ref_transform: LogitTransform | None = None,
) -> Comparison:
    """Exact token-level KL, entropy and log-probs without `[N, V]` logits.

    Args:
        policy, reference: hidden states `[N, H]`, head `[V, H]` and bias of each.
        targets: `[N]`, token ids.
        transform: what the policy does to its logits.
        ref_transform: what the reference does; the same unless given.
    """
    heads = (Head(*policy, transform), Head(*reference, ref_transform or transform))
    blocks = [
        _compare_rows(heads, (policy[0][rows], reference[0][rows]), targets[rows])
        for rows in row_blocks(len(targets))
    ]
    return Comparison(*(torch.cat(column) for column in zip(*blocks, strict=True)))


def _compare_rows(
    heads: tuple[Head, Head], hidden: tuple[Tensor, Tensor], targets: Tensor
) -> Comparison:
    """Both models' rows `[R, H]`: a walk for each log-sum-exp, then one for both sums.

    The sums of p log p and p log q need both normalisers, so the logits are computed again.
    """
    p, q = (walk_vocabulary(*each, targets) for each in zip(heads, hidden, strict=True))
    inputs = [rows.to(head.dtype) for head, rows in zip(heads, hidden, strict=True)]
    own, cross = torch.zeros_like(p.logsumexp), torch.zeros_like(p.logsumexp)  # [R] each
    for (first, chunk), (_, ref_chunk) in zip(heads[0].chunks(), heads[1].chunks(), strict=True):
        log_p = heads[0].logits(inputs[0], first, chunk).sub_(p.logsumexp.unsqueeze(1))  # [R, C]
        log_q = heads[1].logits(inputs[1], first, ref_chunk).sub_(q.logsumexp.unsqueeze(1))
        probability = log_p.exp()  # [R, C]
        own += (probability * log_p).sum(1)  # [R]
        cross += (probability * log_q).sum(1)  # [R]
    return Comparison(p.logprobs, q.logprobs, own - cross, -own)
