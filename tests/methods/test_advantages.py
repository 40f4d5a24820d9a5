"""Advantages against numbers worked by hand, and against a plain double loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.methods.advantages import (
    add_at_ends,
    gae,
    group_means,
    group_stds,
    leave_one_out,
    whiten,
)


def test_gae_by_hand():
    # One answer of two tokens, one of one: delta = r + gamma v' - v, A = delta + gamma lam A'.
    rewards, values = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.25, 1.0])
    advantages, returns = gae(rewards, values, torch.tensor([2, 1]), gamma=0.5, lam=0.5)
    # Token 2: 1 - 0.25 = 0.75. Token 1: 0 + 0.125 - 0.5 + 0.25 * 0.75 = -0.1875. Alone: 2 - 1.
    torch.testing.assert_close(advantages, torch.tensor([-0.1875, 0.75, 1.0]))
    torch.testing.assert_close(returns, torch.tensor([0.3125, 1.0, 2.0]))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    gamma=st.floats(0.1, 1.0),
    lam=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_gae_is_the_sum_of_discounted_errors(lengths, gamma, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
    advantages, returns = gae(rewards, values, torch.tensor(lengths), gamma=gamma, lam=lam)
    expected, start = [], 0
    for length in lengths:
        r, v = rewards[start : start + length], values[start : start + length]
        after = torch.cat([v[1:], v.new_zeros(1)])
        delta = r + gamma * after - v
        expected += [
            sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)
        ]
        start += length
    torch.testing.assert_close(advantages, torch.stack(expected))
    torch.testing.assert_close(returns, torch.stack(expected) + values)


def test_scores_are_paid_at_the_last_token():
    paid = add_at_ends(torch.zeros(5), torch.tensor([2, 3]), torch.tensor([1.0, -2.0]))
    assert paid.tolist() == [0, 1, 0, 0, -2]


def test_whitening_by_hand():
    torch.testing.assert_close(
        whiten(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0])
    )
    kept = whiten(torch.tensor([1.0, 2.0, 3.0]) * 2, shift_mean=False)
    torch.testing.assert_close(kept, torch.tensor([3.0, 4.0, 5.0]))
    assert whiten(torch.tensor([5.0])).tolist() == [0.0]
    assert whiten(torch.full((4,), 2.0)).abs().max() == 0


def test_groups_by_hand():
    scores = torch.tensor([1.0, 4.0, 3.0, 4.0, 7.0])
    group = torch.tensor([0, 3, 0, 3, 5])
    torch.testing.assert_close(group_means(scores, group), torch.tensor([2.0, 4.0, 2.0, 4.0, 7.0]))
    expected = torch.tensor([2.0**0.5, 0.0, 2.0**0.5, 0.0, 0.0])
    torch.testing.assert_close(group_stds(scores, group), expected)
    torch.testing.assert_close(leave_one_out(scores, group), torch.tensor([-2.0, 0, 2.0, 0, 0]))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_leave_one_out_is_the_scaled_distance_from_the_mean(n):
    scores = torch.randn(4 * n, generator=torch.Generator().manual_seed(n))
    group = torch.arange(4).repeat_interleave(n)
    expected = (scores - group_means(scores, group)) * n / (n - 1)
    torch.testing.assert_close(leave_one_out(scores, group), expected)
