"""NCA by hand."""

from __future__ import annotations


def test_loss_by_hand(worked):
    """Rewards 1 and -0.5; -0.5 and 0.5.

    -log sigmoid(1) - 0.5 log sigmoid(-1) - 0.5 log sigmoid(0.5)
        = 0.313262 + 0.656631 + 0.237038 = 1.206931
    -log sigmoid(-0.5) - 0.5 log sigmoid(0.5) - 0.5 log sigmoid(-0.5)
        = 0.974077 + 0.237038 + 0.487038 = 1.698154
    """
    losses, _, _ = worked("nca", beta=0.5)
    assert losses == [1.206931, 1.698154]


def test_gradient_by_hand(worked):
    """Chosen beta (0.5 sigmoid(c) - sigmoid(-c)), rejected beta 0.5 sigmoid(r).

    0.5 (0.365529 - 0.268941) = 0.048294; 0.5 (0.188770 - 0.622459) = -0.216844
    0.25 * 0.377541 = 0.094385; 0.25 * 0.622459 = 0.155615
    """
    _, chosen, rejected = worked("nca", beta=0.5)
    assert chosen == [0.048294, -0.216844]
    assert rejected == [0.094385, 0.155615]
