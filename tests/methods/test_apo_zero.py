"""APO-zero by hand."""

from __future__ import annotations


def test_loss_by_hand(worked):
    """sigmoid(-1) + sigmoid(-0.5) = 0.268941 + 0.377541; twice sigmoid(0.5) = 2 * 0.622459."""
    losses, _, _ = worked("apo_zero", beta=0.5)
    assert losses == [0.646482, 1.244919]


def test_gradient_by_hand(worked):
    """beta sigmoid(x) sigmoid(-x): 0.5 * 0.196612 at 1, 0.5 * 0.235004 at 0.5 and -0.5."""
    _, chosen, rejected = worked("apo_zero", beta=0.5)
    assert chosen == [-0.098306, -0.117502]
    assert rejected == [0.117502, 0.117502]
