"""Whole distributions, a few rows at a time: where filters or entropies need a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from penchant.models.head_logits import head_logits

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.vocabulary import LogitTransform

# Elements of the logits that exist at once.
ELEMENTS_AT_ONCE = 1 << 24


def filtered(logits: Tensor, top_k: int, top_p: float, kept: Tensor | None = None) -> Tensor:
    """Logits `[rows, V]` with what a filter drops at -inf.

    Args:
        logits: at the temperature of sampling.
        top_k: the likeliest tokens; 0: all.
        top_p: the smallest set of likeliest tokens with this probability (Holtzman et al. 2019,
            https://arxiv.org/abs/1904.09751).
        kept: `[rows]`, token ids that stay whatever the filter says.
    """
    if not top_k and top_p >= 1:
        return logits
    dropped = torch.zeros_like(logits, dtype=torch.bool)
    if top_k and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        dropped = logits < least
    if top_p < 1:
        ordered, order = logits.masked_fill(dropped, -torch.inf).sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = dropped | torch.zeros_like(dropped).scatter(1, order, before >= top_p)
    if kept is not None:
        dropped = dropped.scatter(1, kept.unsqueeze(1), False)
    return logits.masked_fill(dropped, -torch.inf)


def whole_distribution(
    head: tuple[Tensor, Tensor, Tensor | None],
    targets: Tensor,
    *,
    transform: LogitTransform,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log p(target) and entropy under the filters, `[N]` each, both differentiable.

    The set of tokens that a filter keeps is that of the present weights, and the target itself:
    it was sampled, so it has some probability.

    Args:
        head: hidden states `[N, H]`, the weights `[V, H]` that they meet, and a bias `[V]` or none.
        targets: `[N]`, token ids.
        transform: what is done to the logits.
        top_k, top_p: as for `filtered`.
    """
    hidden, weight, bias = head

    def rows(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = transformed(head_logits(h, weight, bias), transform)
        every = filtered(logits, top_k, top_p, kept=y).log_softmax(-1)
        return every.gather(1, y.unsqueeze(1)).squeeze(1), entropies(every)

    size = max(1, ELEMENTS_AT_ONCE // len(weight))
    parts = [
        checkpoint(rows, h, y, use_reentrant=False)
        for h, y in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logprobs, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs, entropy


def entropies(every: Tensor) -> Tensor:
    """`[rows]`, in nats, of log-probs `[rows, V]` some of which may be -inf."""
    return -(every.exp() * every.masked_fill(every == -torch.inf, 0.0)).sum(-1)


def transformed(logits: Tensor, transform: LogitTransform) -> Tensor:
    """What the transform makes of raw logits, out of place and differentiably."""
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits / transform.temperature
