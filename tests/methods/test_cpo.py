"""CPO by hand, and beside TRL."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from penchant.methods import PairInputs
from penchant.methods.cpo import CPOOptions, cpo_loss

# Margins: -10 + 13 = 3 and -8 + 4 = -4; averaged -2 + 3.25 = 1.25 and -2 + 1 = -1.
INPUTS = PairInputs(
    chosen=torch.tensor([-10.0, -8.0]),
    rejected=torch.tensor([-13.0, -4.0]),
    ref_chosen=None,
    ref_rejected=None,
    chosen_len=torch.tensor([5, 4]),
    rejected_len=torch.tensor([4, 4]),
)


def loss(inputs=INPUTS, **options):
    return cpo_loss(inputs, CPOOptions(**{"beta": 0.5, "cpo_alpha": 0.0, **options}))


def near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_sigmoid_loss_by_hand():
    """0.5 * 3 = 1.5: log(1 + e^-1.5) = 0.2014133; 0.5 * -4 = -2: log(1 + e^2) = 2.1269280."""
    near(loss().per_example, [0.2014133, 2.1269280])


def test_nll_by_hand():
    """A token of the batch: 10 / 4.5 = 2.2222222, 8 / 4.5 = 1.7777778, whose mean is 18 / 9.

    With weight 0.5: 0.2014133 + 1.1111111 and 2.1269280 + 0.8888889.
    """
    found = loss(cpo_alpha=0.5)
    near(found.per_example, [1.3125244, 3.0158169])
    near(found.metrics["nll"], [2.2222222, 1.7777778])
    assert CPOOptions().cpo_alpha == 1.0


def test_hinge_loss_by_hand():
    """max(0, 1 - 1.5) = 0 and 1 + 2 = 3."""
    near(loss(loss_type="hinge").per_example, [0.0, 3.0])


def test_ipo_loss_by_hand():
    """Averaged log-probs, target 1 / (2 * 0.5) = 1: (1.25 - 1)^2 = 0.0625 and (-1 - 1)^2 = 4."""
    near(loss(loss_type="ipo").per_example, [0.0625, 4.0])


def test_label_smoothing_by_hand():
    """A fifth of the loss of the flipped pair.

    sigmoid: -log sigmoid(-m) = -log sigmoid(m) + m, so 0.2014133 + 0.3 and 2.1269280 - 0.4.
    hinge: 0.2 * (1 + 1.5) = 0.5; 0.8 * 3 + 0.2 * max(0, 1 - 2) = 2.4.
    ipo: 0.8 * 0.0625 + 0.2 * (-1.25 - 1)^2 = 1.0625; 0.8 * 4 + 0.2 * (1 - 1)^2 = 3.2.
    """
    near(loss(label_smoothing=0.2).per_example, [0.5014133, 1.7269280])
    near(loss(label_smoothing=0.2, loss_type="hinge").per_example, [0.5, 2.4])
    near(loss(label_smoothing=0.2, loss_type="ipo").per_example, [1.0625, 3.2])


def test_rewards_are_of_the_log_probs_in_use():
    summed, averaged = loss().metrics, loss(loss_type="ipo").metrics
    near(summed["reward/chosen"], [-5.0, -4.0])
    near(summed["reward/rejected"], [-6.5, -2.0])
    near(averaged["reward/chosen"], [-1.0, -1.0])
    near(averaged["reward/rejected"], [-1.625, -0.5])
    near(averaged["logprob/chosen"], [-10.0, -8.0])


def test_gradient_by_hand():
    """Contrast: -0.5 sigmoid(-1.5) = -0.0912128, -0.5 sigmoid(2) = -0.4403985; NLL: -1 / 4.5."""
    chosen = INPUTS.chosen.clone().requires_grad_()
    rejected = INPUTS.rejected.clone().requires_grad_()
    inputs = PairInputs(chosen, rejected, None, None, INPUTS.chosen_len, INPUTS.rejected_len)
    loss(inputs, cpo_alpha=1.0).per_example.sum().backward()
    near(chosen.grad, [-0.0912128 - 0.2222222, -0.4403985 - 0.2222222])
    near(rejected.grad, [0.0912128, 0.4403985])


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("ratio", [1e4, -1e4])
def test_extreme_margins_have_finite_losses_and_gradients(loss_type, ratio):
    chosen = torch.tensor([ratio - 5.0], requires_grad=True)
    one = torch.tensor([3])
    inputs = PairInputs(chosen, torch.tensor([-5.0]), None, None, one, one)
    found = loss(inputs, loss_type=loss_type, label_smoothing=0.1, cpo_alpha=1.0).per_example
    found.sum().backward()
    assert found.isfinite().all()
    assert chosen.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss_type", "label_smoothing"),
    [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0), ("ipo", 0.0)],
)
def test_contrast_and_rewards_equal_trls(loss_type, label_smoothing, equals_trls_cpo):
    sides = (INPUTS.chosen, INPUTS.rejected)
    if loss_type == "ipo":
        sides = (INPUTS.chosen / INPUTS.chosen_len, INPUTS.rejected / INPUTS.rejected_len)
    options = {"loss_type": loss_type, "label_smoothing": label_smoothing}
    equals_trls_cpo(loss(**options), *sides, alpha=0.0, beta=0.5, **options)


@pytest.mark.parametrize(
    "options",
    [{"beta": 0}, {"cpo_alpha": -1}, {"label_smoothing": 0.5}, {"loss_type": "simpo"}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        CPOOptions(**options)
