"""Two models on the same tokens: exact KL and entropy from hidden states, without `[N, V]` logits.

Shapes are named as in `vocabulary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from penchant.models.vocabulary import AS_IS, Head, LogitTransform, pick, row_blocks

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
    """Both models' rows `[R, H]`, in one walk: each head is multiplied once.

    With logits l, KL(p || q) is the mean under p of l_p - l_q, less the difference of the two
    log-sum-exps. Sums under p are relative to its largest logit so far, as in online softmax.
    """
    inputs = [rows.to(head.dtype) for head, rows in zip(heads, hidden, strict=True)]
    own, theirs = (_Running.of(len(targets), heads[0], rows) for rows in inputs)
    apart, spread = torch.zeros_like(own.total), torch.zeros_like(own.total)  # [R] each
    for (first, chunk), (_, ref_chunk) in zip(heads[0].chunks(), heads[1].chunks(), strict=True):
        logits = heads[0].logits(inputs[0], first, chunk)  # [R, C]
        ref_logits = heads[1].logits(inputs[1], first, ref_chunk)  # [R, C]
        difference = logits - ref_logits  # [R, C]
        before = own
        theirs = theirs.after(ref_logits, targets - first)
        own = own.after(logits, targets - first)
        # Both walks have put the distance from the maximum in place of the logits.
        weights, fallen = logits.exp(), before.maximum - own.maximum  # [R, C], [R]
        correction = fallen.exp()  # [R]; 0 at the first chunk, where there is no maximum before
        fallen = torch.where(before.total > 0, fallen, 0.0)  # -inf * 0 is no number
        spread = correction * (spread + before.total * fallen)
        spread += torch.linalg.vecdot(weights, logits)
        apart = correction * apart + torch.linalg.vecdot(weights, difference)
    logsumexp, ref_logsumexp = own.logsumexp(), theirs.logsumexp()  # [R] each
    return Comparison(
        own.target_logit - logsumexp,
        theirs.target_logit - ref_logsumexp,
        apart / own.total - logsumexp + ref_logsumexp,
        own.total.log() - spread / own.total,
    )


class _Running(NamedTuple):
    """Online softmax of one model's rows, `[R]` each."""

    maximum: Tensor
    total: Tensor
    target_logit: Tensor

    @classmethod
    def of(cls, count: int, head: Head, like: Tensor) -> _Running:
        """Before any chunk."""
        zeros = like.new_zeros(count, dtype=head.accumulate)
        return cls(torch.full_like(zeros, -torch.inf), zeros, zeros)

    def after(self, logits: Tensor, local: Tensor) -> _Running:
        """After a chunk of logits `[R, C]`, which become distances from the maximum."""
        target_logit = pick(logits, local, self.target_logit)
        maximum = torch.maximum(self.maximum, logits.amax(1))
        below = logits.sub_(maximum.unsqueeze(1))
        total = self.total * (self.maximum - maximum).exp() + below.exp().sum(1)
        return _Running(maximum, total, target_logit)

    def logsumexp(self) -> Tensor:
        """Of all logits."""
        return self.maximum + self.total.log()
