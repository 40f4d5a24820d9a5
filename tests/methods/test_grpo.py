"""GRPO by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from penchant.methods.experience import Experience, RolloutInputs
from penchant.methods.grpo import GRPO, GRPOOptions, grpo_advantages, grpo_loss

# Two answers, of two tokens and of one; the reference is e^0.6931472 = 2 times, 1 times and half
# as sure of the tokens as the policy.
OLD = torch.tensor([-1.0, -2.0, -3.0])
LOGPROBS = OLD + torch.tensor([1.5, 0.5, 1.1]).log()
INPUTS = RolloutInputs(
    logprobs=LOGPROBS,
    old_logprobs=OLD,
    advantages=torch.tensor([1.0, 1.0, -2.0]),
    lengths=torch.tensor([2, 1]),
    entropy=torch.tensor([1.0, 2.0, 3.0]),
    ref_logprobs=LOGPROBS + torch.tensor([2.0, 1.0, 0.5]).log(),
)
# Two prompts, two answers each; log-ratios to the reference 2, 0, 1, -1 in all.
EXPERIENCE = Experience(
    lengths=torch.tensor([2, 1, 1, 2]),
    group=torch.tensor([0, 0, 1, 1]),
    scores=torch.tensor([1.0, 3.0, 2.0, 2.0]),
    logprobs=torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0]),
    ref_logprobs=torch.tensor([-1.5, -2.5, -1.0, -2.0, -1.0, 0.0]),
)


def options(**changes):
    return GRPOOptions(reward="r", **{"beta": 0.0, "loss_type": "grpo", **changes})


def loss(inputs=INPUTS, **changes):
    return grpo_loss(inputs, options(**changes))


def gradient(inputs=INPUTS, **changes):
    logprobs = inputs.logprobs.clone().requires_grad_()
    loss(replace(inputs, logprobs=logprobs), **changes).per_example.sum().backward()
    return logprobs.grad


def estimate(experience=EXPERIENCE, **changes):
    return grpo_advantages(experience, 0.0, options(**changes))


def near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("scale", "first", "second"),
    [("group", -0.7070568, 0.7070568), ("batch", -1.2245949, 1.2245949), ("none", -1.0, 1.0)],
)
def test_advantages_by_hand(scale, first, second):
    """-1 and 1, over sqrt(2) + 1e-4 of the group or sqrt(2 / 3) + 1e-4 of the batch."""
    found = estimate(scale_rewards=scale)
    near(found.advantages, [first, first, second, 0.0, 0.0, 0.0])


def test_divergence_in_the_reward_by_hand():
    """Half of 2, 0, 1, -1 off 1, 3, 2, 2 leaves 0, 3, 1.5, 2.5."""
    found = estimate(scale_rewards="none", kl_in_reward=True, beta=0.5)
    near(found.advantages, [-1.5, -1.5, 1.5, -0.5, 0.5, 0.5])
    near(estimate(scale_rewards="none", kl_in_reward=True).advantages[:1], [-1.0])


def test_groups_without_variance_are_left_out_and_counted():
    found = estimate()
    assert found.kept.tolist() == [True, True, False, False]
    assert found.metrics["reward/zero_variance"] == 0.5
    everyone = estimate(skip_zero_variance=False)
    assert everyone.kept is None
    assert everyone.metrics["reward/zero_variance"] == 0.5


@pytest.mark.parametrize("score", [0.1, 0.7, -3.3, 100.1])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equal_scores_are_equal_whatever_the_group_and_the_score(score, size):
    """A mean that is rounded in single precision would find a deviation."""
    rows = torch.zeros(size)
    same = Experience(
        lengths=rows.long() + 1, group=rows.long(), scores=rows + score, logprobs=rows
    )
    assert not estimate(same).kept.any()
    assert estimate(same, skip_zero_variance=False).advantages.tolist() == rows.tolist()


def test_token_ratios_by_hand():
    """-1.2 (clipped), -0.5 (not: worse than -0.8), 2.2 (not: an answer to unlearn)."""
    near(loss().per_example, [-0.85, 2.2])
    near(gradient(), [0.0, -0.25, 2.2])
    near(loss().metrics["policy/clipfrac"], [1 / 1.5, 0.0])


def test_means_by_hand():
    """Of -1.7 and 2.2: over 1.5 tokens an answer, or over max_completion_length."""
    near(loss(loss_type="dapo").per_example, [-1.7 / 1.5, 2.2 / 1.5])
    near(loss(loss_type="dr_grpo", max_completion_length=10).per_example, [-0.17, 0.22])
    near(loss(replace(INPUTS, mean_len=4.0), loss_type="dapo").per_example, [-0.425, 0.55])
    near(loss(replace(INPUTS, mean_len=4.0)).per_example, [-0.85, 2.2])


def test_cispo_bounds_the_weight_and_drops_no_token_by_hand():
    """Weights min(1.5, 1.2), 0.5 and 1.1; the gradient is minus weight times advantage."""
    found = loss(loss_type="cispo")
    near(gradient(loss_type="cispo"), [-1.2 / 1.5, -0.5 / 1.5, 2.2 / 1.5])
    near(found.metrics["policy/clipfrac"], [1 / 1.5, 0.0])


def test_rewards_that_are_normalised_first_by_hand():
    """Deviations of 1.4142136 in each group of two; the second reward says nothing of group 1.

    Group 0: 2 * -1 / 1.4143136 + 10 / 14.1422356 and its negative; group 1: 0, less penalties.
    """
    two = replace(
        EXPERIENCE,
        by_reward=torch.tensor([[1.0, 30.0], [3.0, 10.0], [2.0, 5.0], [2.0, 5.0]]),
        penalties=torch.tensor([0.0, 0.0, -0.5, 0.0]),
    )
    keys = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": (2.0, 1.0)}
    found = grpo_advantages(two, 0.0, GRPOOptions(reward=("r", "s"), beta=0.0, **keys))
    total = torch.tensor([-0.7070118, 0.7070118, -0.5, 0.0])
    expected = (total - total.mean()) / (total.std() + 1e-4)
    torch.testing.assert_close(found.advantages, expected[two.index], rtol=0, atol=2e-6)
    with pytest.raises(ValidationError, match="score_clip changes nothing"):
        GRPOOptions(reward=("r", "s"), score_clip=1.0, **keys)


def test_truncated_answers_are_compared_but_not_trained_on():
    cut = replace(EXPERIENCE, ended=torch.tensor([True, False, True, True]))
    found = estimate(cut, mask_truncated_completions=True, skip_zero_variance=False)
    assert found.kept.tolist() == [True, False, True, True]
    assert found.advantages.tolist() == estimate(EXPERIENCE).advantages.tolist()
    assert estimate(cut, mask_truncated_completions=True).kept.tolist() == [True] + [False] * 3


def test_clip_ranges_by_hand():
    """Up to 1.6 the first token counts whole: -1.5 - 0.5. Below, only bad answers are clipped."""
    near(loss(epsilon_high=0.6).per_example, [-1.0, 2.2])
    near(loss(epsilon_high=0.05).per_example, [-0.775, 2.2])
    bad = replace(INPUTS, advantages=torch.tensor([-1.0, -1.0, -2.0]))
    near(loss(bad).per_example, [(1.5 + 0.8) / 2, 2.2])
    near(loss(bad, epsilon=0.6, epsilon_high=0.2).per_example, [(1.5 + 0.5) / 2, 2.2])
    near(loss(epsilon=0.6).per_example, [-1.0, 2.2])  # above too, unless it is said otherwise


def test_ratios_of_answers_by_hand():
    """sqrt(1.5 * 0.5) = 0.8660254 for both tokens; a token's share of the gradient is half."""
    near(loss(importance_sampling_level="sequence").per_example, [-0.8660254, 2.2])
    near(gradient(importance_sampling_level="sequence"), [-0.4330127, -0.4330127, 2.2])
    bad = replace(INPUTS, advantages=torch.tensor([-1.0, -1.0, -2.0]))
    close = {"importance_sampling_level": "sequence", "epsilon": 0.1}
    near(loss(bad, **close).per_example, [0.9, 2.2])
    near(gradient(bad, **close), [0.0, 0.0, 2.2])


def test_divergence_in_the_loss_by_hand():
    """q - log q - 1: 2 - 0.6931472 - 1 = 0.3068528; 0; 0.5 + 0.6931472 - 1 = 0.1931472.

    Its gradient is 1 - q: -1, 0, 0.5.
    """
    plain = {"beta": 2.0, "use_bias_correction_kl": False}
    found = loss(**plain)
    near(found.per_example, [-0.85 + 0.3068528, 2.2 + 0.3862944])
    near(found.metrics["loss/kl"], [0.2045685, 0.1287648])
    near(found.metrics["loss/policy"], [-0.85, 2.2])
    near(gradient(**plain), [-1.0, -0.25, 3.2])


def test_the_weighted_divergence_by_hand():
    """1.5 * 0.3068528 = 0.4602792; 0; 1.1 * 0.1931472 = 0.2124619.

    Its gradient is the ratio times -log q: 1.5 * -0.6931472, 0, 1.1 * 0.6931472.
    """
    found = loss(beta=2.0)
    near(found.per_example, [-0.85 + 0.4602792, 2.2 + 0.4249238])
    near(found.metrics["loss/kl"], [0.3068528, 0.1416413])
    near(gradient(beta=2.0), [-1.0397208, -0.25, 2.2 + 1.5249238])


def test_the_weighted_divergence_has_the_gradient_of_the_divergence():
    """Over all three words of a vocabulary, weighted by how likely they are drawn."""
    logits = torch.tensor([0.3, -1.0, 0.5], requires_grad=True)
    reference = torch.tensor([-0.5, 0.2, 0.1]).log_softmax(0)
    logprobs = logits.log_softmax(0)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)[0]
    inputs = replace(
        INPUTS, logprobs=logits.log_softmax(0), old_logprobs=logprobs.detach(),
        ref_logprobs=reference, advantages=torch.zeros(3),
        lengths=torch.ones(3, dtype=torch.long),
    )  # fmt: skip
    expected = (loss(inputs, beta=1.0).per_example * logprobs.detach().exp()).sum()
    torch.testing.assert_close(torch.autograd.grad(expected, logits)[0], exact)


def test_a_divergence_in_the_reward_is_not_in_the_loss():
    near(loss(beta=2.0, kl_in_reward=True).per_example, [-0.85, 2.2])
    assert "loss/kl" not in loss(beta=2.0, kl_in_reward=True).metrics


def test_the_divergence_never_pushes_away_from_a_far_reference():
    """Without its exponential, which is bounded, the linear term would."""
    still = replace(INPUTS, advantages=torch.zeros(3), ref_logprobs=LOGPROBS + 1e4)
    assert (gradient(still, beta=1.0, use_bias_correction_kl=False) <= 0).all()


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_the_entropy_bonus_is_a_mean_over_tokens_by_hand(loss_type):
    """Half of 3 / 1.5 for both answers."""
    plain = loss(loss_type=loss_type).per_example
    bonus = loss(loss_type=loss_type, entropy_coef=0.5).per_example
    near(plain - bonus, [1.0, 1.0])


def test_a_reference_is_asked_for_only_where_it_is_read():
    assert GRPO.needs(options(beta=0.04)).reference
    assert not GRPO.needs(options()).reference
    assert GRPO.needs(options(entropy_coef=0.1)).entropy_gradient
    assert not GRPO.needs(options()).entropy_gradient


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0},
        {"epsilon_high": 0},
        {"beta": -1},
        {"num_generations": 1},
        {"num_iterations": 0},
        {"loss_type": "bnpo"},
        {"scale_rewards": "std"},
        {"importance_sampling_level": "word"},
    ],
)
def test_impossible_options_are_refused(changes):
    with pytest.raises(ValidationError):
        options(**changes)
