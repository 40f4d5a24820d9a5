"""DPO by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from penchant.methods import PairInputs
from penchant.methods.dpo import DPOOptions, dpo_loss

# Log-ratios: chosen -10 - -12 = 2 and -7 - -6 = -1; rejected -9 - -8 = -1 and -4 - -5 = 1.
INPUTS = PairInputs(
    chosen=torch.tensor([-10.0, -7.0]),
    rejected=torch.tensor([-9.0, -4.0]),
    ref_chosen=torch.tensor([-12.0, -6.0]),
    ref_rejected=torch.tensor([-8.0, -5.0]),
    chosen_len=torch.tensor([5, 3]),
    rejected_len=torch.tensor([4, 2]),
)


def loss(inputs=INPUTS, **options):
    return dpo_loss(inputs, DPOOptions(**options))


def test_sigmoid_loss_by_hand():
    """Margins are 0.5 (2 + 1) = 1.5 and 0.5 (-1 - 1) = -1.

    -log sigmoid(1.5) = log(1 + e^-1.5) = log(1.223130) = 0.201413
    -log sigmoid(-1) = log(1 + e^1) = log(3.718282) = 1.313262
    """
    found = loss(beta=0.5).per_example
    torch.testing.assert_close(found, torch.tensor([0.201413, 1.313262]), rtol=0, atol=1e-6)


def test_label_smoothing_by_hand():
    """0.9 and 0.1 of -log sigmoid(m) and -log sigmoid(-m) = -log sigmoid(m) + m, at margins m.

    0.201413 + 0.1 * 1.5 = 0.351413; 1.313262 + 0.1 * -1 = 1.213262
    """
    found = loss(beta=0.5, label_smoothing=0.1).per_example
    torch.testing.assert_close(found, torch.tensor([0.351413, 1.213262]), rtol=0, atol=1e-6)


def test_hinge_loss_by_hand():
    """max(0, 1 - 1.5) = 0 and max(0, 1 + 1) = 2."""
    assert loss(beta=0.5, loss_type="hinge").per_example.tolist() == [0.0, 2.0]


def test_smoothed_hinge_loss_by_hand():
    """0.8 * 0 + 0.2 * (1 + 1.5) = 0.5; 0.8 * 2 + 0.2 * max(0, 1 - 1) = 1.6."""
    found = loss(beta=0.5, loss_type="hinge", label_smoothing=0.2).per_example
    torch.testing.assert_close(found, torch.tensor([0.5, 1.6]))


def test_rewards_and_accuracy_by_hand():
    metrics = loss(beta=0.5).metrics
    assert metrics["reward/chosen"].tolist() == [1.0, -0.5]
    assert metrics["reward/rejected"].tolist() == [-0.5, 0.5]
    assert metrics["reward/margin"].tolist() == [1.5, -1.0]
    assert metrics["reward/accuracy"].tolist() == [1.0, 0.0]
    assert metrics["logprob/chosen"].tolist() == [-10.0, -7.0]
    assert metrics["logprob/rejected"].tolist() == [-9.0, -4.0]


def test_a_policy_that_is_its_reference_has_loss_log_2_and_an_accuracy_of_one_half():
    same = PairInputs(
        INPUTS.chosen,
        INPUTS.rejected,
        INPUTS.chosen,
        INPUTS.rejected,
        INPUTS.chosen_len,
        INPUTS.rejected_len,
    )
    found = loss(same)
    assert found.per_example.tolist() == pytest.approx([math.log(2)] * 2)
    assert found.metrics["reward/accuracy"].tolist() == [0.5, 0.5]


def test_gradient_by_hand():
    """d/d chosen of -log sigmoid(m) is -beta sigmoid(-m): -0.5 * 0.182426 and -0.5 * 0.731059."""
    chosen = INPUTS.chosen.clone().requires_grad_()
    rejected = INPUTS.rejected.clone().requires_grad_()
    moved = PairInputs(
        chosen,
        rejected,
        INPUTS.ref_chosen,
        INPUTS.ref_rejected,
        INPUTS.chosen_len,
        INPUTS.rejected_len,
    )
    loss(moved, beta=0.5).per_example.sum().backward()
    expected = torch.tensor([-0.0912130, -0.3655293])
    torch.testing.assert_close(chosen.grad, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(rejected.grad, -expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0},
        {"beta": -0.1},
        {"label_smoothing": 0.5},
        {"label_smoothing": -0.1},
        {"loss_type": "ipo"},
        {"gamma": 1.0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        DPOOptions(**options)
