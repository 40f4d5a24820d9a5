"""ORPO by hand, and beside TRL."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from penchant.methods import PairInputs
from penchant.methods.orpo import ORPO, ORPOOptions, log1mexp, log_odds, orpo_loss

# Average probabilities a token: 1/2 and 1/4, odds 1 and 1/3; 1/5 and 1/2, odds 1/4 and 1.
INPUTS = PairInputs(
    chosen=torch.tensor([2 * math.log(1 / 2), math.log(1 / 5)]),
    rejected=torch.tensor([4 * math.log(1 / 4), 3 * math.log(1 / 2)]),
    ref_chosen=None,
    ref_rejected=None,
    chosen_len=torch.tensor([2, 1]),
    rejected_len=torch.tensor([4, 3]),
    prompt=torch.tensor([-4.0, -6.0]),
    prompt_len=torch.tensor([3, 2]),
)


def loss(inputs=INPUTS, **options):
    return orpo_loss(inputs, ORPOOptions(**options))


def near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_loss_over_the_completion_by_hand():
    """Odds ratios 3 and 1/4: log(1 + 1/3) = 0.2876821 and log(1 + 4) = 1.6094379, a tenth of each.

    NLL a token of the batch, 1.5 a pair: 2 log 2 / 1.5 = 0.9241962, log 5 / 1.5 = 1.0729586.
    """
    found = loss(nll_scope="completion")
    near(found.per_example, [0.9241962 + 0.0287682, 1.0729586 + 0.1609438])
    near(found.metrics["nll"], [0.9241962, 1.0729586])
    near(found.metrics["log_odds_ratio"], [math.log(3), math.log(1 / 4)])


def test_loss_over_prompt_and_completion_by_hand():
    """1.5 + 2.5 = 4 tokens a pair.

    (1.3862944 + 4) / 4 = 1.3465736; (1.6094379 + 6) / 4 = 1.9023595
    """
    found = loss()
    near(found.per_example, [1.3465736 + 0.0287682, 1.9023595 + 0.1609438])
    assert ORPO.needs(ORPOOptions()).prompt
    assert not ORPO.needs(ORPOOptions(nll_scope="completion")).prompt


def test_a_pair_alone_has_the_loss_it_has_in_a_batch_given_the_means_of_the_batch():
    whole = replace(INPUTS, mean_chosen_len=1.5, mean_prompt_len=2.5)
    first = PairInputs(
        *(value[:1] if isinstance(value, torch.Tensor) else value for value in vars(whole).values())
    )
    torch.testing.assert_close(loss(first).per_example, loss().per_example[:1])


def test_rewards_are_beta_times_the_average_log_prob():
    metrics = loss(beta=0.5).metrics
    near(metrics["reward/chosen"], [0.5 * math.log(1 / 2), 0.5 * math.log(1 / 5)])
    near(metrics["reward/rejected"], [0.5 * math.log(1 / 4), 0.5 * math.log(1 / 2)])
    near(metrics["reward/accuracy"], [1.0, 0.0])
    torch.testing.assert_close(metrics["logprob/chosen"], INPUTS.chosen)


def test_gradient_by_hand():
    """d log odds / d log p = 1 / (1 - p); of the contrast -beta / (1 + ratio) / (1 - p) / length.

    chosen: -0.1 * 1/4 * 2 / 2 = -0.025 and -0.1 * 4/5 * 5/4 = -0.1, besides -1 / 1.5 of the NLL;
    rejected: 0.1 * 1/4 * 4/3 / 4 = 0.0083333 and 0.1 * 4/5 * 2 / 3 = 0.0533333.
    """
    chosen = INPUTS.chosen.clone().requires_grad_()
    rejected = INPUTS.rejected.clone().requires_grad_()
    inputs = replace(INPUTS, chosen=chosen, rejected=rejected)
    loss(inputs, nll_scope="completion").per_example.sum().backward()
    near(chosen.grad, [-0.025 - 0.6666667, -0.1 - 0.6666667])
    near(rejected.grad, [0.0083333, 0.0533333])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_keeps_its_digits_on_both_sides(dtype):
    """log(1 - e^-0.001) = log(0.0009995001666...) = -6.9082553; log(1 - e^-20) = -2.0611536e-9."""
    found = log1mexp(torch.tensor([-0.001, -math.log(2), -20.0], dtype=dtype))
    expected = torch.tensor([-6.9082553206, -math.log(2), -2.0611536942e-9], dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_odds_of_certain_and_of_impossible_completions_are_finite(dtype):
    logprob = torch.tensor([1e4, 0.0, -1e-30, -1e-7, -1e4], dtype=dtype, requires_grad=True)
    found = log_odds(logprob)
    found.sum().backward()
    assert found.dtype != torch.bfloat16
    assert found.isfinite().all()
    assert log1mexp(logprob).isfinite().all()
    assert logprob.grad.isfinite().all()
    assert (logprob.grad > 0).all()


@pytest.mark.parametrize("logprob", [0.0, -1e-5, -1e4])
def test_extreme_completions_have_finite_losses_and_gradients(logprob):
    chosen = torch.tensor([logprob, -5.0], requires_grad=True)
    rejected = torch.tensor([-5.0, logprob], requires_grad=True)
    found = loss(replace(INPUTS, chosen=chosen, rejected=rejected)).per_example
    found.sum().backward()
    assert found.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()


def test_odds_ratio_and_rewards_equal_trls():
    trl = pytest.importorskip("trl.experimental.orpo")
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    losses, chosen, rejected, _, mean_log_odds = trl.ORPOTrainer.odds_ratio_loss(
        trainer, INPUTS.chosen / INPUTS.chosen_len, INPUTS.rejected / INPUTS.rejected_len
    )
    found = loss(beta=0.3)
    torch.testing.assert_close(found.metrics["nll"] - found.per_example, losses)
    torch.testing.assert_close(found.metrics["reward/chosen"], chosen)
    torch.testing.assert_close(found.metrics["reward/rejected"], rejected)
    torch.testing.assert_close(found.metrics["log_odds_ratio"].mean(), mean_log_odds)


@pytest.mark.parametrize("options", [{"beta": 0}, {"nll_scope": "prompt"}, {"gamma": 1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        ORPOOptions(**options)
