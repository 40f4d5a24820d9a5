"""SPPO by hand."""

from __future__ import annotations


def test_loss_by_hand(worked):
    """The targets are 1 / (2 * 0.5) = 1 and -1.

    (2 - 1)^2 + (-1 + 1)^2 = 1; (-1 - 1)^2 + (1 + 1)^2 = 8
    """
    losses, _, _ = worked("sppo", beta=0.5)
    assert losses == [1, 8]


def test_gradient_by_hand(worked):
    """2 (2 - 1) = 2 and 2 (-1 - 1) = -4; 2 (-1 + 1) = 0 and 2 (1 + 1) = 4."""
    _, chosen, rejected = worked("sppo", beta=0.5)
    assert chosen == [2, -4]
    assert rejected == [0, 4]


def test_the_default_aims_at_the_papers_500_nats(worked, untrained):
    """eta = 1000: 2 * 500^2."""
    losses, _, _ = worked("sppo", untrained)
    assert losses == [500_000, 500_000]
