"""BCO by hand."""

from __future__ import annotations


def test_loss_by_hand(worked):
    """-log sigmoid of 1 and 0.5: 0.313262 + 0.474077; twice of -0.5: 2 * 0.974077."""
    losses, _, _ = worked("bco", beta=0.5)
    assert losses == [0.787339, 1.948154]


def test_gradient_by_hand(worked):
    """Chosen -beta sigmoid(-c), rejected beta sigmoid(r).

    -0.5 * 0.268941 and -0.5 * 0.622459; 0.5 * 0.377541 and 0.5 * 0.622459
    """
    _, chosen, rejected = worked("bco", beta=0.5)
    assert chosen == [-0.134471, -0.311230]
    assert rejected == [0.188770, 0.311230]
