"""Reward models by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from penchant.methods.inputs import ScoreInputs
from penchant.methods.reward import RewardOptions, reward_loss

# Differences: 1 - 0 = 1 and -0.5 - 1 = -1.5.
CHOSEN, REJECTED = torch.tensor([1.0, -0.5]), torch.tensor([0.0, 1.0])
MARGIN = torch.tensor([1.5, 0.25])


def loss(margin=None, **options):
    return reward_loss(ScoreInputs(CHOSEN, REJECTED, margin), RewardOptions(**options))


def near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_bradley_terry_by_hand():
    """log(1 + e^-1) = 0.3132617; log(1 + e^1.5) = 1.7014133."""
    near(loss().per_example, [0.3132617, 1.7014133])


def test_margins_by_hand():
    """1 - 1.5 = -0.5: log(1 + e^0.5) = 0.9740770; -1.5 - 0.25: log(1 + e^1.75) = 1.9102242."""
    near(loss(MARGIN, use_margins=True).per_example, [0.9740770, 1.9102242])


def test_margins_in_the_data_are_not_read_unless_asked_for():
    near(loss(MARGIN).per_example, [0.3132617, 1.7014133])


def test_margins_that_are_asked_for_must_be_there():
    with pytest.raises(AssertionError):
        loss(use_margins=True)


def test_centring_by_hand():
    """0.1 * (1 + 0)^2 = 0.1 and 0.1 * (-0.5 + 1)^2 = 0.025 more."""
    near(loss(center_rewards_coefficient=0.1).per_example, [0.4132617, 1.7264133])


def test_metrics_are_of_the_scores_whatever_the_margins():
    metrics = loss(MARGIN, use_margins=True).metrics
    near(metrics["reward/chosen"], [1.0, -0.5])
    near(metrics["reward/rejected"], [0.0, 1.0])
    near(metrics["reward/margin"], [1.0, -1.5])
    near(metrics["reward/accuracy"], [1.0, 0.0])


def test_gradient_by_hand():
    """-sigmoid(-1) = -0.2689414 and -sigmoid(1.5) = -0.8175745, the opposite for the rejected."""
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    reward_loss(ScoreInputs(chosen, rejected), RewardOptions()).per_example.sum().backward()
    near(chosen.grad, [-0.2689414, -0.8175745])
    near(rejected.grad, [0.2689414, 0.8175745])


@pytest.mark.parametrize("options", [{"center_rewards_coefficient": 0}, {"margin": 1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        RewardOptions(**options)
