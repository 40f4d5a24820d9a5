"""Two models on the same tokens: exact KL and entropy from hidden states, without `[N, V]` logits.

Shapes are named as in `vocabulary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from penchant.models.vocabulary import AS_IS, Head, LogitTransform, row_blocks, walk_vocabulary

if TYPE_CHECKING:
    from torch import Tensor


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
