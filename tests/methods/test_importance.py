"""Importance weights by hand, and what they make of a sampler that computes otherwise."""

from __future__ import annotations

import math

import pytest
import torch

from penchant.methods import METHODS
from penchant.methods.experience import Advantages, Experience
from penchant.methods.importance import importance_weights, reweighted

# Two answers of two tokens and of one: scored e^-1, e^-1 and e^-3.
LENGTHS = torch.tensor([2, 1])
SCORED = torch.tensor([-1.0, -1.0, -3.0])


def experience(sampled):
    return Experience(
        lengths=LENGTHS, logprobs=SCORED, group=torch.zeros(2, dtype=torch.long),
        scores=torch.zeros(2), sampled_logprobs=torch.tensor(sampled),
    )  # fmt: skip


def test_tokens_are_weighted_by_their_own_ratio_and_answers_by_the_product():
    """Tokens twice, half and four times as likely as sampled; an answer once and four times."""
    two = math.log(2)
    drawn = experience([-1 - two, -1 + two, -3 - 2 * two])
    tokens, metrics = importance_weights(drawn, "token", 3.0)
    torch.testing.assert_close(tokens, torch.tensor([2.0, 0.5, 3.0]))
    assert metrics["sampling/ratio_max"] == pytest.approx(4)
    assert metrics["sampling/truncated"] == pytest.approx(1 / 3)
    # mean(r - 1 - log r) of 2, 1/2 and 4
    terms = [1 - two, -0.5 + two, 3 - 2 * two]
    assert metrics["sampling/kl"] == pytest.approx(sum(terms) / 3, rel=1e-5)

    answers, metrics = importance_weights(drawn, "sequence", 3.0)
    torch.testing.assert_close(answers, torch.tensor([1.0, 1.0, 0.0]))
    assert metrics["sampling/ratio"] == pytest.approx(2.5)
    assert metrics["sampling/truncated"] == 0.5


def test_weights_give_the_policys_mean_from_another_samplers_answers():
    """The weighted mean over the sampler's draws is the policy's own."""
    policy, sampler = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
    drawn = torch.multinomial(
        sampler.exp(), 40_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    made = Advantages(torch.tensor([1.0, -2.0, 5.0])[drawn])
    lived = Experience(
        lengths=torch.ones(len(drawn), dtype=torch.long), logprobs=policy[drawn],
        group=torch.zeros(len(drawn), dtype=torch.long), scores=torch.zeros(len(drawn)),
        sampled_logprobs=sampler[drawn],
    )  # fmt: skip
    for level in ("token", "sequence"):
        options = METHODS["grpo"].options(reward="r", importance_sampling=level)
        weighted = reweighted(made, lived, options).advantages.mean()
        assert float(weighted) == pytest.approx(0.5 - 0.6 + 1.0, abs=0.05)
    assert abs(float(made.advantages.mean()) - 0.9) > 0.5


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
@pytest.mark.parametrize(
    ("keys", "level"),
    [
        ({}, None),
        ({"generation": "cached"}, None),
        ({"generation": "vllm"}, "sequence"),
        ({"generation": "vllm-server", "vllm_url": "http://127.0.0.1:8000"}, "sequence"),
        ({"generation": "vllm", "importance_sampling": "off"}, None),
        ({"importance_sampling": "token"}, "token"),
    ],
)
def test_weights_are_on_by_default_where_another_engine_draws(method, keys, level):
    options = METHODS[method].options(reward="r", **keys)
    assert options.importance_level == level
    made = Advantages(torch.tensor([1.0, -1.0, 2.0]))
    weighted = reweighted(made, experience([-1.0, -1.1, -2.0]), options)
    assert (weighted is made) == (level is None)


def test_pairs_are_learned_from_whoever_answered():
    options = METHODS["online_dpo"].options
    assert options(reward="r", generation="vllm").importance_level is None
    with pytest.raises(ValueError, match="without importance weights; drop importance_sampling"):
        options(reward="r", importance_sampling="token")
