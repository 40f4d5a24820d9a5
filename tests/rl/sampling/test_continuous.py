"""Continuous batching, the real one: whose answer is whose, whatever fails or changes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from penchant.core.errors import ConfigError, TrainingError
from penchant.data.batch import Group
from penchant.models.lora import add_lora
from penchant.models.policy import PolicyScorer
from penchant.models.scoring import ScoringPlan
from penchant.rl.sampling import continuous
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.continuous import ContinuousSampler, require_continuous
from penchant.rl.sampling.sampler import CachedSampler

LONG = [11 + i % 200 for i in range(300)]  # more than a page of the cache
PROMPTS = [[40, 41, 42, 43, 44], [50, 51], LONG, [60], [70, 71, 72, 73, 74, 75, 76, 77]]
ENDS = [2, 5, 9]


@pytest.fixture
def policy(tiny_model_dir):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():  # sharper than random weights give
        model.lm_head.weight.mul_(40)
    scorer = PolicyScorer(
        add_lora(model, r=2, alpha=4, dropout=0.5, target_modules="all-linear"), 0
    )
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    return scorer.train()


def scored(policy, found, **distribution):
    """The log-probs of sampled tokens as scoring finds them, and as they were sampled."""
    policy.sample_from(**distribution)
    groups = [Group(p, tuple(c.ids for c in cs)) for p, cs in zip(PROMPTS, found, strict=True)]
    with torch.no_grad(), policy.evaluating():
        values = policy(policy.batch(groups))
    policy.sample_from(temperature=1.0)
    return values, torch.tensor([p for cs in found for c in cs for p in c.logprobs])


def change(policy):
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


def test_answers_are_those_of_their_prompts_batch_after_batch_with_the_weights_of_now(policy):
    sampler = ContinuousSampler(policy, ENDS, batch_size=3)
    sampling = Sampling(12, temperature=0.7, top_k=20, top_p=0.9)
    managers, batches = set(), []
    for seed in (1, 1, 2):
        sampler.sync()
        batches.append(sampler.sample(PROMPTS, Draw(sampling, seed, n=2)))
        managers.add(id(sampler._manager))
        values, sampled = scored(policy, batches[-1], temperature=0.7, top_k=20, top_p=0.9)
        torch.testing.assert_close(values, sampled, rtol=1e-4, atol=1e-4)
        if seed == 1 and len(batches) == 2:
            change(policy)
    assert batches[0] == batches[1] != batches[2]
    assert len(managers) == 1
    assert policy.training
    assert all(len(cs) == 2 and cs[0] != cs[1] for cs in batches[0])


def test_the_likeliest_answers_are_those_of_the_cache(policy):
    change(policy)
    greedy = Draw(Sampling(10, temperature=0), seed=0)
    found = ContinuousSampler(policy, ENDS, 4).sample(PROMPTS, greedy)
    expected = CachedSampler(policy, ENDS, 4).sample(PROMPTS, greedy)
    assert [[(c.ids, c.ended) for c in cs] for cs in found] == [
        [(c.ids, c.ended) for c in cs] for cs in expected
    ]


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_answers_are_drawn_in_the_precision_of_the_run(policy, weights):
    if weights == "bf16":
        for parameter in policy.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    change(policy)
    seen = set()
    layer = policy.causal_model.model.layers[0].mlp.gate_proj
    layer.register_forward_hook(lambda m, i, output: seen.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = ContinuousSampler(policy, ENDS).sample(
            PROMPTS, Draw(Sampling(8, temperature=0.7), seed=0)
        )
        assert seen == {torch.bfloat16}
        values, sampled = scored(policy, found, temperature=0.7)
    assert (values - sampled).abs().mean() < 0.1
    assert "forward" not in vars(policy.causal_model)


def test_what_fails_once_is_asked_again_and_what_fails_twice_is_named(policy):
    """The third request fails as it is scheduled, as one does that the cache cannot hold."""
    sampler = ContinuousSampler(policy, ENDS, batch_size=4)
    draw = Draw(Sampling(6, temperature=0.7), seed=3)
    expected = sampler.sample(PROMPTS, draw)
    failures = []

    def fail(times):
        def hook(module, args, kwargs):
            ids = kwargs["input_ids"]
            if len(failures) < times and ids.shape[1] > 40:
                failures.append(1)
                raise torch.OutOfMemoryError("tried to allocate 3 GiB")

        failures.clear()
        return policy.causal_model.register_forward_pre_hook(hook, with_kwargs=True)

    handle = fail(1)
    again = sampler.sample(PROMPTS, draw)
    handle.remove()
    assert failures == [1]
    values, sampled = scored(policy, again, temperature=0.7)
    torch.testing.assert_close(values, sampled, rtol=1e-4, atol=1e-4)
    handle = fail(2)
    with pytest.raises(TrainingError, match=r"prompt 1 of 5 \(5 tokens\): .*3 GiB.*cached"):
        sampler.sample(PROMPTS, draw)
    handle.remove()
    assert sampler.sample(PROMPTS, draw) == expected


def test_an_older_transformers_is_refused_with_the_version_to_install(monkeypatch):
    require_continuous()
    monkeypatch.setattr(continuous, "version", lambda name: "5.2.0")
    with pytest.raises(ConfigError, match=r"needs transformers 5\.20 or later, got 5\.2\.0"):
        require_continuous()
