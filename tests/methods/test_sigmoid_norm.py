"""Length-normalised DPO by hand."""

from __future__ import annotations

import torch

from penchant.methods.sigmoid_norm import SigmoidNormOptions, sigmoid_norm_loss


def test_loss_by_hand(worked):
    """Averages: 2 / 5 + 1 / 4 = 0.65 and -1 / 4 - 1 / 2 = -0.75, times 2 is 1.3 and -1.5.

    log(1 + e^-1.3) = 0.241008; log(1 + e^1.5) = 1.701413
    """
    losses, _, _ = worked("sigmoid_norm", beta=2)
    assert losses == [0.241008, 1.701413]


def test_gradient_by_hand(worked):
    """-2 sigmoid(-m) over the lengths 5 and 4; 2 sigmoid(-m) over 4 and 2.

    sigmoid(-1.3) = 0.214165, sigmoid(1.5) = 0.817574
    """
    _, chosen, rejected = worked("sigmoid_norm", beta=2)
    assert chosen == [-0.085666, -0.408787]
    assert rejected == [0.107083, 0.817574]


def test_rewards_are_averages(pairs):
    metrics = sigmoid_norm_loss(pairs, SigmoidNormOptions(beta=2)).metrics
    torch.testing.assert_close(metrics["reward/chosen"], torch.tensor([0.8, -0.5]))
    torch.testing.assert_close(metrics["reward/rejected"], torch.tensor([-0.5, 1.0]))
