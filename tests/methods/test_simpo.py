"""SimPO by hand, and beside TRL."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from penchant.methods import PairInputs
from penchant.methods.simpo import SimPOOptions, shaped, simpo_loss

# Averages: -2 and -3, -2 and -1.
INPUTS = PairInputs(
    chosen=torch.tensor([-10.0, -8.0]),
    rejected=torch.tensor([-9.0, -4.0]),
    ref_chosen=None,
    ref_rejected=None,
    chosen_len=torch.tensor([5, 4]),
    rejected_len=torch.tensor([3, 4]),
)


def loss(inputs=INPUTS, **options):
    return simpo_loss(inputs, SimPOOptions(**options))


def near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_loss_by_hand():
    """2 * (-2 + 3) - 1 = 1: log(1 + e^-1) = 0.3132617; 2 * (-2 + 1) - 1 = -3: 3.0485874."""
    near(loss(beta=2.0, gamma=1.0).per_example, [0.3132617, 3.0485874])
    assert SimPOOptions() == SimPOOptions(beta=2.0, gamma=1.0, cpo_alpha=0.0)


def test_label_smoothing_by_hand():
    """-log sigmoid(-m) = -log sigmoid(m) + m: 0.3132617 + 0.1 * 1 and 3.0485874 - 0.1 * 3."""
    near(loss(label_smoothing=0.1).per_example, [0.4132617, 2.7485874])


def test_nll_by_hand():
    """A token of the batch: 10 / 4.5 and 8 / 4.5; half of them is 1.1111111 and 0.8888889."""
    near(loss(cpo_alpha=0.5).per_example, [1.4243728, 3.9374763])


def test_alphapo_by_hand():
    """p = 1/2 and 1/4, beta 1, no target.

    alpha 1: 1 - 1/p = -1 and -3, log(1 + e^-2) = 0.1269280;
    alpha -1: p - 1 = -0.5 and -0.75, log(1 + e^-0.25) = 0.5759394.
    """
    half, three = math.log(0.5), torch.tensor([3])
    inputs = PairInputs(
        torch.tensor([3 * half]), torch.tensor([6 * half]), None, None, three, three
    )
    for alpha, rewards, expected in (
        (1.0, (-1.0, -3.0), 0.1269280),
        (-1.0, (-0.5, -0.75), 0.5759394),
    ):
        found = loss(inputs, beta=1.0, gamma=0.0, alpha=alpha)
        near(found.per_example, [expected])
        near(found.metrics["reward/chosen"], [rewards[0]])
        near(found.metrics["reward/rejected"], [rewards[1]])


def test_alphapo_goes_over_into_the_log_prob_as_alpha_goes_to_0():
    logprob = torch.tensor([-0.01, -2.0, -15.0])
    torch.testing.assert_close(shaped(logprob, 1e-6), logprob, rtol=1e-4, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, -1.0])
@pytest.mark.parametrize("ratio", [1e4, 0.0, -1e4])
def test_extreme_log_probs_have_finite_losses_and_gradients(alpha, ratio):
    chosen = torch.tensor([ratio - 5.0], requires_grad=True)
    one = torch.tensor([1])
    inputs = PairInputs(chosen, torch.tensor([-5.0]), None, None, one, one)
    found = loss(inputs, alpha=alpha, label_smoothing=0.1, cpo_alpha=1.0).per_example
    found.sum().backward()
    assert found.isfinite().all()
    assert chosen.grad.isfinite().all()


def test_rewards_are_beta_times_the_average_log_prob():
    metrics = loss(beta=2.5, gamma=1.0).metrics
    near(metrics["reward/chosen"], [-5.0, -5.0])
    near(metrics["reward/rejected"], [-7.5, -2.5])
    near(metrics["reward/margin"], [2.5, -2.5])
    near(metrics["reward/accuracy"], [1.0, 0.0])
    near(metrics["logprob/chosen"], [-10.0, -8.0])


def test_gradient_by_hand():
    """-sigmoid(-m) beta / length: -0.2689414 * 2 / 5 and -0.9525741 * 2 / 4; rejected: / 3, / 4."""
    chosen = INPUTS.chosen.clone().requires_grad_()
    rejected = INPUTS.rejected.clone().requires_grad_()
    inputs = PairInputs(chosen, rejected, None, None, INPUTS.chosen_len, INPUTS.rejected_len)
    loss(inputs).per_example.sum().backward()
    near(chosen.grad, [-0.1075766, -0.4762871])
    near(rejected.grad, [0.1792943, 0.4762871])


@pytest.mark.parametrize("alpha", [0.0, 0.25, -0.5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_contrast_and_rewards_equal_trls(alpha, label_smoothing, equals_trls_cpo):
    options = {"beta": 2.5, "alpha": alpha, "label_smoothing": label_smoothing}
    sides = (INPUTS.chosen / INPUTS.chosen_len, INPUTS.rejected / INPUTS.rejected_len)
    found = loss(gamma=1.4, **options)
    equals_trls_cpo(found, *sides, loss_type="simpo", simpo_gamma=1.4, **options)


@pytest.mark.parametrize(
    "options",
    [{"beta": 0}, {"gamma": -1}, {"alpha": 2}, {"cpo_alpha": -1}, {"label_smoothing": 0.5}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        SimPOOptions(**options)
