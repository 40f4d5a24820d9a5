"""PPO by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

import penchant
from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.methods.experience import Experience, RolloutInputs
from penchant.methods.ppo import PPO, PPOOptions, ppo_advantages, ppo_loss
from penchant.training.checkpoint_reading import read_part

# Two answers, of two tokens and of one. Their mean length is 1.5.
OLD = torch.tensor([-1.0, -2.0, -3.0])
INPUTS = RolloutInputs(
    logprobs=OLD + torch.tensor([1.5, 0.5, 1.1]).log(),
    old_logprobs=OLD,
    advantages=torch.tensor([1.0, -1.0, 2.0]),
    lengths=torch.tensor([2, 1]),
    entropy=torch.tensor([1.0, 2.0, 3.0]),
    values=torch.tensor([1.0, 0.5, 2.0]),
    old_values=torch.tensor([0.5, 0.5, 1.0]),
    returns=torch.tensor([2.0, 0.0, 1.0]),
)
# Log-ratios to the reference: 0.5, -1, 0.
EXPERIENCE = Experience(
    lengths=torch.tensor([2, 1]),
    group=torch.tensor([0, 1]),
    scores=torch.tensor([1.0, 2.0]),
    logprobs=torch.tensor([-1.0, -2.0, -1.0]),
    ref_logprobs=torch.tensor([-1.5, -1.0, -1.0]),
    full_kl=torch.tensor([0.1, 0.2, 0.3]),
    values=torch.tensor([0.5, 0.25, 1.0]),
)


def loss(inputs=INPUTS, **options):
    return ppo_loss(inputs, PPOOptions(reward="r", **options))


def estimate(**options):
    """With a coefficient of 0.2; without discounts unless they are given."""
    options = {"gamma": 1.0, "lam": 1.0, **options}
    return ppo_advantages(EXPERIENCE, 0.2, PPOOptions(reward="r", **options))


def near(found, expected):
    torch.testing.assert_close(found.detach(), torch.tensor(expected), rtol=0, atol=2e-6)


def test_loss_by_hand():
    """Policy: max(-1.5, -1.2), max(0.5, 0.8) and -2 * 1.1 are -1.2, 0.8, -2.2.

    Values, clipped to 0.7, 0.5, 1.2: half of max(1, 1.69), 0.25, max(1, 0.04).
    First answer: (-1.2 + 0.8 + 0.1 * (0.845 + 0.125)) / 1.5; second: (-2.2 + 0.1 * 0.5) / 1.5.
    """
    found = loss()
    near(found.per_example, [-0.202, -1.4333333])
    near(found.metrics["loss/policy"], [-0.2666667, -1.4666667])
    near(found.metrics["loss/value"], [0.6466667, 0.3333333])


def test_the_policys_clip_range_by_hand():
    """At 0.6 nothing is clipped: -1.5 + 0.5 = -1 over 1.5."""
    found = loss(cliprange=0.6, vf_coef=0.0)
    near(found.per_example, [-0.6666667, -1.4666667])
    near(found.metrics["policy/clipfrac"], [0.0, 0.0])


def test_the_values_clip_range_by_hand():
    """At 1 nothing is clipped: half of 1 + 0.25 and of 1."""
    near(loss(cliprange=0.6).metrics["loss/value"], [0.6466667, 0.3333333])
    found = loss(cliprange_value=1.0)
    near(found.metrics["loss/value"], [0.4166667, 0.3333333])
    near(found.metrics["value/clipfrac"], [0.0, 0.0])


def test_values_are_clipped_below_too():
    """From 0.5 to 0 is clipped to 0.3: half of max(1, 1.69), as above, for a return of -1."""
    low = replace(INPUTS, values=torch.tensor([0.0, 0.5, 2.0]), returns=torch.tensor([-1.0, 0, 1]))
    near(loss(low, cliprange=0.6).metrics["loss/value"], [0.6466667, 0.3333333])


def test_weights_of_values_and_entropy_by_hand():
    """Values: 0.6466667 and 0.3333333 once, not 0.1 times. Entropy: half of 3 / 1.5 each."""
    near(loss(vf_coef=1.0).per_example, [0.38, -1.1333333])
    near(loss(vf_coef=0.0, entropy_coef=0.5).per_example, [-1.2666667, -2.4666667])


def test_gradients_by_hand():
    """What is clipped has none. Policy: -2.2 / 1.5. Values: 0.1 * (v - return) / 1.5."""
    logprobs, values, entropy = (
        value.clone().requires_grad_() for value in (INPUTS.logprobs, INPUTS.values, INPUTS.entropy)
    )
    inputs = replace(INPUTS, logprobs=logprobs, values=values, entropy=entropy)
    loss(inputs, entropy_coef=0.3).per_example.sum().backward()
    near(logprobs.grad, [0.0, 0.0, -1.4666667])
    near(values.grad, [0.0, 0.0333333, 0.0666667])
    near(entropy.grad, [-0.2, -0.2, -0.2])


def test_metrics_by_hand():
    """Over tokens: log-ratios 0.4054651, -0.6931472, 0.0953102; two of three are clipped."""
    metrics = loss().metrics
    means = {name: value.mean().item() for name, value in metrics.items()}
    assert means["policy/ratio"] == pytest.approx(3.1 / 3)
    assert means["policy/policykl"] == pytest.approx(0.1923719 / 3, abs=1e-6)
    assert means["policy/approxkl"] == pytest.approx((0.0822010 + 0.2402265 + 0.0045420) / 3)
    assert means["policy/entropy"] == pytest.approx(2.0)
    assert means["policy/clipfrac"] == pytest.approx(2 / 3)
    assert means["value/clipfrac"] == pytest.approx(1 / 3)
    assert means["value/error"] == pytest.approx((1 + 0.25 + 1) / 3)


def test_a_global_mean_length_replaces_the_batchs():
    """Averages over the tokens of a mini-batch of 6 tokens an answer are a quarter of these."""
    near(loss(replace(INPUTS, mean_len=6.0)).per_example, [-0.0505, -0.3583333])


@pytest.mark.parametrize(
    ("kind", "returns", "divergence"),
    [
        ("kl", [1.1, 1.2, 2.0], -0.25),
        ("abs", [0.7, 0.8, 2.0], 0.75),
        ("mse", [0.875, 0.9, 2.0], 0.3125),
        ("full", [0.94, 0.96, 1.94], 0.3),
    ],
)
def test_penalties_by_hand(kind, returns, divergence):
    """Without discounts a return is all that is still paid: scores less 0.2 times the penalties.

    kl 0.5, -1, 0; abs 0.5, 1, 0; mse 0.125, 0.5, 0; full 0.1, 0.2, 0.3.
    """
    found = estimate(kl_penalty=kind)
    near(found.returns, returns)
    assert found.metrics["objective/kl"] == pytest.approx(divergence)
    assert found.metrics["objective/non_score_reward"] == pytest.approx(-0.2 * divergence)
    assert found.metrics["objective/kl_coef"] == 0.2
    assert PPO.needs(PPOOptions(reward="r", kl_penalty=kind)).full_kl == (kind == "full")


def test_the_coefficient_of_the_moment_is_charged():
    """0.4 instead of 0.2: rewards -0.2, 1.4, 2."""
    found = ppo_advantages(EXPERIENCE, 0.4, PPOOptions(reward="r", lam=1.0))
    near(found.returns, [1.2, 1.4, 2.0])
    assert found.metrics["objective/kl_coef"] == 0.4


def test_discounts_by_hand():
    """Rewards -0.1, 1.2, 2. gamma 0.5, lam 0.5: 1.2 - 0.25 = 0.95;

    -0.1 + 0.5 * 0.25 - 0.5 + 0.25 * 0.95 = -0.2375; 2 - 1 = 1. Returns add the values.
    """
    near(estimate(gamma=0.5, lam=0.5).returns, [0.2625, 1.2, 2.0])
    near(estimate(gamma=0.5, lam=0.0).returns, [0.025, 1.2, 2.0])
    near(estimate(gamma=1.0, lam=0.5).returns, [0.625, 1.2, 2.0])


def test_advantages_are_whitened_by_hand():
    """-0.2375, 0.95, 1: mean 0.5708333, unbiased deviation 0.7004835."""
    near(estimate(gamma=0.5, lam=0.5).advantages, [-1.1539647, 0.5412929, 0.6126717])


def test_whitened_rewards_by_hand():
    """-0.1, 1.2, 2: mean 1.0333333 stays, deviation 1.0598742 becomes 1."""
    found = estimate(whiten_rewards=True)
    near(found.returns, [-0.0359758 + 1.1905850, 1.1905850, 1.9453903])


def test_explained_variance_by_hand():
    """Errors 0.6, 0.95, 1: variance 0.0316667 of 0.1622222 (returns 1.1, 1.2, 2)."""
    metrics = estimate().metrics
    assert metrics["value/explained"] == pytest.approx(1 - 0.0316667 / 0.1622222, abs=1e-5)
    assert metrics["returns/mean"] == pytest.approx(4.3 / 3)
    assert metrics["value/mean"] == pytest.approx(1.75 / 3)


def test_mini_batches_far_from_their_sampler_are_skipped():
    assert not PPO.veto({"policy/ratio": 10.0}, PPOOptions(reward="r"))
    assert PPO.veto({"policy/ratio": 10.1}, PPOOptions(reward="r"))
    assert PPO.veto({"policy/ratio": 1.6}, PPOOptions(reward="r", ratio_threshold=1.5))


def test_a_skipped_mini_batch_has_no_gradient_and_is_marked(tiny_model_dir, tmp_path):
    """A first step at a large rate moves the ratios from 1; with this guard that is too far."""

    def letters(completions, **_):
        return [float(sum(c.isalpha() for c in text)) for text in completions]

    run = tmp_path / "run"
    penchant.train(
        "ppo", model=str(tiny_model_dir), data=[{"prompt": c} for c in "abcdefgh"], output=run,
        reward=letters, batch_size=8, per_device_train_batch_size=8, gradient_accumulation_steps=1,
        max_completion_length=8, max_length=32, max_steps=16, learning_rate=0.1, warmup_ratio=0.0,
        eval_samples=0, ratio_threshold=1.0 + 1e-4, cliprange=10.0, save_steps=1,
        save_total_limit=16,
    )  # fmt: skip
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(record.get("skipped") for record in records)
    for record in records:
        assert bool(record.get("skipped")) == (record["policy/ratio"] > 1.0 + 1e-4)
        assert (record["grad_norm"] == 0) == bool(record.get("skipped"))
    # AdamW's momentum would go on without a gradient.
    for before, record in pairwise(records):
        one, other = (
            read_part(run / "checkpoints", r["step"], "weights") for r in (before, record)
        )
        same = all(torch.equal(weight, other[name]) for name, weight in one.items())
        assert same == bool(record.get("skipped"))


@pytest.mark.parametrize(
    "options",
    [
        {"cliprange": 0},
        {"cliprange_value": 0},
        {"vf_coef": -1},
        {"entropy_coef": -1},
        {"gamma": 0},
        {"gamma": 1.1},
        {"lam": -0.1},
        {"lam": 1.1},
        {"kl_penalty": "k3"},
        {"init_kl_coef": -0.1},
        {"target_kl": 0},
        {"horizon": 0},
        {"ratio_threshold": 1},
        {"early_stopping_kl": 0},
        {"ppo_epochs": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        PPOOptions(reward="r", **options)


def test_a_coefficient_of_nothing_cannot_be_steered():
    with pytest.raises(ValidationError, match="0 stays 0"):
        PPOOptions(reward="r", init_kl_coef=0, adap_kl_ctrl=True)
    assert PPOOptions(reward="r", init_kl_coef=0).init_kl_coef == 0
    assert PPOOptions(reward="r", init_kl_coef=0, adap_kl_ctrl=False).init_kl_coef == 0


def test_values_and_a_trained_entropy_are_asked_for_where_they_are_read():
    assert PPO.needs(PPOOptions(reward="r")).values
    assert not PPO.needs(PPOOptions(reward="r")).entropy_gradient
    assert PPO.needs(PPOOptions(reward="r", entropy_coef=0.01)).entropy_gradient


def test_what_only_a_critic_reads_is_no_option_of_others():
    with pytest.raises(ConfigError, match="option of ppo, not of grpo"):
        load_config("grpo", {"model": "M", "data": "D", "reward": "r", "lam": 0.9})
