"""IPO by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from penchant.methods.ipo import IPOOptions, ipo_loss


@pytest.fixture
def loss(pairs):
    """Return a function that gives the loss of the two pairs under some options."""
    return lambda **options: ipo_loss(pairs, IPOOptions(**options))


def test_length_averaged_loss_by_hand(loss):
    """Averages: 2 / 5 = 0.4 and -1 / 4; -1 / 4 = -0.25 and 1 / 2. The target is 1 / (2 * 0.5) = 1.

    (0.4 + 0.25 - 1)^2 = 0.1225; (-0.25 - 0.5 - 1)^2 = 3.0625
    """
    torch.testing.assert_close(loss(beta=0.5).per_example, torch.tensor([0.1225, 3.0625]))


def test_summed_loss_of_the_paper_by_hand(loss):
    """(2 + 1 - 1)^2 = 4; (-1 - 1 - 1)^2 = 9."""
    assert loss(beta=0.5, log_ratio="sum").per_example.tolist() == [4.0, 9.0]


def test_the_target_margin_is_half_the_inverse_of_beta(loss):
    """beta 0.125: target 4. (0.65 - 4)^2 = 11.2225; (-0.75 - 4)^2 = 22.5625."""
    torch.testing.assert_close(loss(beta=0.125).per_example, torch.tensor([11.2225, 22.5625]))


def test_rewards_are_of_the_log_ratio_in_use(loss):
    averaged, summed = loss(beta=0.5).metrics, loss(beta=0.5, log_ratio="sum").metrics
    torch.testing.assert_close(averaged["reward/chosen"], torch.tensor([0.2, -0.125]))
    torch.testing.assert_close(averaged["reward/margin"], torch.tensor([0.325, -0.375]))
    assert summed["reward/chosen"].tolist() == [1.0, -0.5]
    assert summed["reward/margin"].tolist() == [1.5, -1.0]
    assert averaged["reward/accuracy"].tolist() == summed["reward/accuracy"].tolist() == [1.0, 0.0]
    assert averaged["logprob/chosen"].tolist() == [-10.0, -7.0]


@pytest.mark.parametrize(
    "options", [{"beta": 0}, {"beta": -1}, {"log_ratio": "max"}, {"label_smoothing": 0.1}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        IPOOptions(**options)
