"""RLOO by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from penchant.methods.experience import Experience, RolloutInputs
from penchant.methods.rloo import RLOO, RLOOOptions, rloo_advantages, rloo_loss

# Ratios of the two answers: 1.5 * 0.5 = 0.75, and 1.1.
OLD = torch.tensor([-1.0, -2.0, -3.0])
INPUTS = RolloutInputs(
    logprobs=OLD + torch.tensor([1.5, 0.5, 1.1]).log(),
    old_logprobs=OLD,
    advantages=torch.tensor([1.0, 1.0, -2.0]),
    lengths=torch.tensor([2, 1]),
    entropy=torch.tensor([1.0, 2.0, 3.0]),
)
# A prompt with three answers and one with two; log-ratios to the reference 2, 0, 1, -1, 1.
EXPERIENCE = Experience(
    lengths=torch.tensor([2, 1, 1, 1, 1]),
    group=torch.tensor([0, 0, 0, 1, 1]),
    scores=torch.tensor([1.0, 3.0, 8.0, 2.0, 2.0]),
    logprobs=torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0]),
    ref_logprobs=torch.tensor([-1.5, -2.5, -1.0, -2.0, 0.0, -2.0]),
)


def options(**changes):
    return RLOOOptions(reward="r", **{"beta": 0.0, **changes})


def loss(inputs=INPUTS, **changes):
    return rloo_loss(inputs, options(**changes))


def gradient(inputs=INPUTS, **changes):
    logprobs = inputs.logprobs.clone().requires_grad_()
    loss(replace(inputs, logprobs=logprobs), **changes).per_example.sum().backward()
    return logprobs.grad


def estimate(**changes):
    return rloo_advantages(EXPERIENCE, 0.0, options(**changes))


def near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-6)


def test_advantages_by_hand():
    """1 - (3 + 8) / 2, 3 - (1 + 8) / 2, 8 - (1 + 3) / 2; 2 - 2 twice. Once for every token."""
    near(estimate().advantages, [-4.5, -4.5, -1.5, 6.0, 0.0, 0.0])


def test_the_divergence_is_charged_to_the_reward_by_hand():
    """Half of it leaves 0, 3, 7.5 and 2.5, 1.5."""
    near(estimate(beta=0.5).advantages, [-5.25, -5.25, -0.75, 6.0, 1.0, -1.0])


def test_normalised_advantages_by_hand():
    """-4.5, -1.5, 6, 0, 0: mean 0, unbiased deviation sqrt(58.5 / 4) = 3.8242646, plus 1e-4."""
    found = estimate(normalize_advantages=True).advantages
    near(found, [-1.1766659, -1.1766659, -0.3922220, 1.5688879, 0.0, 0.0])


def test_groups_without_variance_are_left_out_and_counted():
    """What the rewards gave decides, whatever the divergence adds."""
    for beta in (0.0, 0.5):
        found = estimate(beta=beta)
        assert found.kept.tolist() == [True, True, True, False, False]
        assert found.metrics["reward/zero_variance"] == 0.5
    assert estimate(skip_zero_variance=False).kept is None


def test_truncated_answers_are_left_out_and_count_in_the_mean_of_their_group():
    """The third has 8, without which the first two would be compared with 3 and 1 alone."""
    cut = replace(EXPERIENCE, ended=torch.tensor([True, True, False, True, False]))
    for kept, changes in (
        ([True, True, False, False, False], {}),
        ([True, True, False, True, False], {"skip_zero_variance": False}),
    ):
        found = rloo_advantages(cut, 0.0, options(mask_truncated_completions=True, **changes))
        assert found.kept.tolist() == kept
        near(found.advantages, [-4.5, -4.5, -1.5, 6.0, 0.0, 0.0])
    assert rloo_advantages(cut, 0.0, options()).kept.tolist() == [True, True, True, False, False]


def test_loss_and_gradient_by_hand():
    """-0.75 (not clipped: worse than -0.8) and 2.2; every token moves the ratio of its answer."""
    near(loss().per_example, [-0.75, 2.2])
    near(gradient(), [-0.75, -0.75, 2.2])
    near(loss().metrics["policy/clipfrac"], [0.0, 0.0])


def test_clip_ranges_by_hand():
    """A bad answer is clipped below, a good one above, and then has no gradient."""
    turned = replace(INPUTS, advantages=torch.tensor([-1.0, -1.0, 2.0]))
    near(loss(turned, epsilon_high=0.05).per_example, [0.8, -2.1])
    near(gradient(turned, epsilon_high=0.05), [0.0, 0.0, 0.0])
    near(loss(turned, epsilon_high=0.05).metrics["policy/clipfrac"], [1.0, 1.0])
    near(loss(turned, epsilon=0.3).per_example, [0.75, -2.2])
    near(loss(turned, epsilon=0.05).per_example, [0.95, -2.1])


def test_lengths_do_not_weigh():
    near(loss(replace(INPUTS, mean_len=7.0)).per_example, [-0.75, 2.2])


def test_the_entropy_bonus_is_a_mean_over_tokens_by_hand():
    """Half of 3 / 1.5 for both answers."""
    near(loss(entropy_coef=0.5).per_example, [-1.75, 1.2])


def test_the_first_gradient_is_that_of_reinforce():
    """Where the policy is still its sampler: minus the advantage, for every token."""
    near(gradient(replace(INPUTS, logprobs=OLD)), [-1.0, -1.0, 2.0])


def test_a_reference_is_asked_for_only_where_it_is_read():
    assert RLOO.needs(options(beta=0.05)).reference
    assert not RLOO.needs(options()).reference
    assert RLOO.needs(options(entropy_coef=0.1)).entropy_gradient


@pytest.mark.parametrize(
    "changes",
    [{"epsilon": 0}, {"epsilon_high": 0}, {"beta": -1}, {"num_generations": 1}],
)
def test_impossible_options_are_refused(changes):
    with pytest.raises(ValidationError):
        options(**changes)
