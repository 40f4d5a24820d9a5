"""Advantages: generalised advantage estimation over tokens, and baselines over groups.

Rows are ragged and laid end to end; `lengths` `[B]` says where each ends.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_at_ends(values: Tensor, lengths: Tensor, amounts: Tensor) -> Tensor:
    """`values` `[N]` with `amounts` `[B]` added to the last token of each row."""
    return values.index_add(0, lengths.cumsum(0) - 1, amounts.to(values))


def whiten(values: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`values` `[N]` scaled to unit (unbiased) variance, and shifted to mean 0 if asked."""
    if len(values) < 2:
        return values - values.mean() if shift_mean else values
    mean, variance = values.mean(), values.var()
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


def gae(
    rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, https://arxiv.org/abs/1506.02438).

    Args:
        rewards, values: `[N]`, of each token; nothing follows the last of a row.
        lengths: `[B]`.
        gamma, lam: discount of rewards and of advantages.

    Returns:
        Advantages, not whitened, and returns (advantages + values), `[N]` each.
    """
    where = _positions(lengths)
    width = int(lengths.max())
    reward, value = (_rows(one, where, len(lengths), width) for one in (rewards, values))
    advantages = torch.zeros_like(reward)
    last = advantages.new_zeros(len(lengths))
    following = last
    for t in reversed(range(width)):
        # After the end of a row everything is 0, and so is what is carried from there.
        delta = reward[:, t] + gamma * following - value[:, t]
        last = delta + gamma * lam * last
        advantages[:, t] = last
        following = value[:, t]
    flat = advantages[where]
    return flat, flat + values


def group_means(scores: Tensor, group: Tensor) -> Tensor:
    """`[B]`: the mean score of each answer's group."""
    total, count = _totals(scores, group)
    return (total / count).to(scores)[group]


def group_stds(scores: Tensor, group: Tensor) -> Tensor:
    """`[B]`: the unbiased deviation of each answer's group; 0 where it is alone."""
    centred = scores - group_means(scores, group)
    squares, count = _totals(centred.square(), group)
    return (squares / (count - 1).clamp(min=1)).sqrt().to(scores)[group]


def leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    """`[B]`: score minus the mean of the others in the group; 0 where there are none.

    RLOO: Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740), Eq. 7.
    """
    total, count = (each[group.cpu()] for each in _totals(scores, group))
    own = scores.cpu().double()
    others = (total - own) / (count - 1).clamp(min=1)
    return torch.where(count > 1, own - others, 0.0).to(scores)


def _totals(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    # Equal scores must have exactly their own mean. Not every device has fp64 (Apple's has not).
    scores, group = scores.cpu().double(), group.cpu()
    zeros = scores.new_zeros(int(group.max()) + 1)
    return zeros.index_add(0, group, scores), zeros.index_add(0, group, torch.ones_like(scores))


def _positions(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every token."""
    row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    column = torch.arange(len(row), device=lengths.device) - starts[row]
    return row, column


def _rows(values: Tensor, where: tuple[Tensor, Tensor], count: int, width: int) -> Tensor:
    rows = values.new_zeros(count, width)
    rows[where] = values
    return rows
