"""A policy's log-probs, values and entropies: one layout says what the other does."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from penchant.data.batch import Group
from penchant.models.policy import PolicyScorer, make_value_head
from penchant.models.scoring import PLAIN, Scorer, ScoringPlan

PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
GROUPS = [Group([5, 6, 7], ([8, 9], [10, 11, 12])), Group([20], ([21, 22, 23, 24],))]


@pytest.fixture
def policy(tiny_model_dir):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    head = make_value_head(model)
    torch.nn.init.normal_(head.weight)
    return PolicyScorer(model, 0, value_head=head, entropy_gradient=True).eval()


def outputs(policy, plan, **sampling):
    policy.use(plan)
    policy.sample_from(**{"temperature": 1.0, **sampling})
    return policy(policy.batch(GROUPS), policy=True)


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.6}, {"top_k": 9}, {"temperature": 1.3, "top_p": 0.7}]
)
def test_both_layouts_agree_with_gradients(policy, sampling):
    found = []
    for plan in (PACKED, PLAIN):
        out = outputs(policy, plan, **sampling)
        total = out.logprobs.sum() + 3 * out.entropy.sum() + 2 * out.values.sum()
        gradients = torch.autograd.grad(total, list(policy.parameters()), allow_unused=True)
        told = [one for one in out if one is not None]  # no divergence without a teacher
        assert len(told) == 3
        found.append((*told, *(g for g in gradients if g is not None)))
    assert len(found[0]) == len(found[1])
    for packed, plain in zip(*found, strict=True):
        assert packed.isfinite().all()
        torch.testing.assert_close(packed, plain, rtol=2e-3, atol=2e-4)


def test_entropies_and_values_by_the_models_own_outputs(policy):
    out = outputs(policy, PACKED, temperature=0.8)
    group = Group([20], ([21, 22, 23, 24],))
    with policy.plain_attention():
        whole = policy.model(torch.tensor([[20, 21, 22, 23, 24]]), output_hidden_states=True)
    every = (whole.logits[0, :4] / 0.8).log_softmax(-1)
    expected = every.gather(1, torch.tensor(group.completions[0]).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(out.logprobs[-4:], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        out.entropy[-4:], torch.special.entr(every.exp()).sum(-1), rtol=1e-4, atol=1e-4
    )
    values = policy.value_head(whole.hidden_states[-1][0, :4]).squeeze(-1)
    torch.testing.assert_close(out.values[-4:], values, rtol=1e-4, atol=1e-4)


def test_a_critic_of_its_own_says_the_values(policy, tiny_model_dir):
    shared = outputs(policy, PACKED).values
    critic = Scorer(AutoModelForCausalLM.from_pretrained(tiny_model_dir), 0)
    apart = PolicyScorer(policy.model, 0, value_head=policy.value_head, critic=critic)
    torch.testing.assert_close(outputs(apart, PACKED).values, shared)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(outputs(apart, PACKED).values, shared)


def test_a_new_value_head_says_nothing(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    policy = PolicyScorer(model, 0, value_head=make_value_head(model))
    assert outputs(policy, PACKED).values.abs().max() == 0
    assert outputs(PolicyScorer(model, 0), PACKED).values is None
