"""APO-down by hand."""

from __future__ import annotations


def test_loss_by_hand(worked):
    """sigmoid(1) + sigmoid(-1.5) = 0.731059 + 0.182426; sigmoid(-0.5) + sigmoid(1)."""
    losses, _, _ = worked("apo_down", beta=0.5)
    assert losses == [0.913484, 1.108599]


def test_gradient_by_hand(worked):
    """sigmoid(x) sigmoid(-x) is 0.196612 at 1, 0.149146 at 1.5, 0.235004 at -0.5.

    0.5 (0.196612 - 0.149146) = 0.023733; 0.5 (0.235004 - 0.196612) = 0.019196
    0.5 * 0.149146 = 0.074573; 0.5 * 0.196612 = 0.098306
    """
    _, chosen, rejected = worked("apo_down", beta=0.5)
    assert chosen == [0.023733, 0.019196]
    assert rejected == [0.074573, 0.098306]


def test_an_untrained_policy_first_lowers_the_rejected_completion(worked, untrained):
    """The pulls on the chosen one cancel out: 0.25 - 0.25."""
    _, chosen, rejected = worked("apo_down", untrained, beta=0.5)
    assert chosen == [0, 0]
    assert rejected == [0.125, 0.125]
