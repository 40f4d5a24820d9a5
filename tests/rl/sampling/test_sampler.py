"""Sampling with a cache: the model's own distribution, whatever the batch, and filters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from penchant.data.batch import Group
from penchant.models.distribution import filtered
from penchant.models.policy import PolicyScorer, make_value_head
from penchant.models.scoring import ScoringPlan
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.drawing import draw_tokens, row_uniforms
from penchant.rl.sampling.sampler import CachedSampler

PROMPTS = [[40, 41, 42, 43, 44], [50, 51], [60], [70, 71, 72, 73, 74, 75, 76, 77]]


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():  # sharper than random weights give
        model.lm_head.weight.mul_(40)
    scorer = PolicyScorer(model, 0)
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    return scorer.eval()


def test_the_likeliest_tokens_are_those_that_transformers_generates(policy):
    sampler = CachedSampler(policy, [2], batch_size=3)
    found = sampler.sample(PROMPTS, Draw(Sampling(12, temperature=0), seed=0))
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        with policy.plain_attention():
            theirs = policy.model.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=[2],
                pad_token_id=0,
            )[0, len(prompt) :].tolist()  # fmt: skip
        assert completion.ids == theirs
        assert completion.ended == (completion.ids[-1] == 2)


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 20, "top_p": 0.9}])
def test_sampled_log_probs_are_those_that_scoring_finds(policy, filters):
    sampling = Sampling(16, temperature=0.7, **filters)
    sampler = CachedSampler(policy, [2, 5, 9], batch_size=4)
    found = sampler.sample(PROMPTS, Draw(sampling, seed=1, n=3))
    policy.sample_from(temperature=0.7, **filters)
    try:
        groups = [Group(p, tuple(c.ids for c in cs)) for p, cs in zip(PROMPTS, found, strict=True)]
        with torch.no_grad():
            scored = policy(policy.batch(groups))
    finally:
        policy.sample_from(temperature=1.0)
    sampled = torch.tensor([p for cs in found for c in cs for p in c.logprobs])
    torch.testing.assert_close(scored, sampled, rtol=1e-4, atol=1e-4)
    assert all(len(c.ids) <= 16 for cs in found for c in cs)
    assert all(c.ended == (c.ids[-1] in (2, 5, 9)) for cs in found for c in cs)
    assert all(not {2, 5, 9} & set(c.ids[:-1]) for cs in found for c in cs)


def test_a_share_of_the_prompts_is_answered_as_it_is_among_all(policy):
    alike = [*PROMPTS, PROMPTS[0]]
    every = CachedSampler(policy, [2], 32).sample(alike, Draw(Sampling(12), seed=1, n=3))
    assert every[0] != every[-1]  # equal prompts, each with random numbers of its own
    for batch_size, numbers in ((2, [1, len(PROMPTS)]), (5, [2, 0])):
        some = CachedSampler(policy, [2], batch_size).sample(
            [alike[i] for i in numbers], Draw(Sampling(12), seed=1, n=3, numbers=numbers)
        )
        expected = [every[i] for i in numbers]
        assert [[c.ids for c in cs] for cs in some] == [[c.ids for c in cs] for cs in expected]


def test_the_seed_decides_alone(policy):
    sampler = CachedSampler(policy, [2], batch_size=4)
    draws = [sampler.sample(PROMPTS, Draw(Sampling(8), seed, n=2)) for seed in (3, 3, 4)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    sampler.sample(PROMPTS, Draw(Sampling(3), seed=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_come_as_often_as_they_are_probable():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(40_000, 1)
    tokens, logprobs = draw_tokens(
        logits, Sampling(1, temperature=0.5), row_uniforms([(0, 0)], len(logits), 0)[0]
    )
    share = torch.bincount(tokens, minlength=4) / len(tokens)
    expected = (logits[0] / 0.5).softmax(-1)
    torch.testing.assert_close(share, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_filters_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(top_k=0, top_p=1.0, **how):
        return filtered(logits, top_k, top_p, **how).isfinite().tolist()[0]

    assert kept() == [True] * 4
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.51) == [True, True, False, False]
    assert kept(top_p=0.96) == [True] * 4
    assert kept(top_k=1, kept=torch.tensor([3])) == [True, False, False, True]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), n=st.integers(1, 3),
       batch_size=st.integers(1, 5))  # fmt: skip
def test_every_prompt_gets_its_answers(policy, lengths, n, batch_size):
    prompts = [[30 + i] * length for i, length in enumerate(lengths)]
    sampler = CachedSampler(policy, [2], batch_size=batch_size)
    greedy = sampler.sample(prompts, Draw(Sampling(4, temperature=0), seed=0, n=n))
    alone = CachedSampler(policy, [2], batch_size=1)
    for prompt, completions in zip(prompts, greedy, strict=True):
        (expected,) = alone.sample([prompt], Draw(Sampling(4, temperature=0), seed=0))[0]
        assert [c.ids for c in completions] == [expected.ids] * n


def test_prompts_of_unlike_length_are_read_apart_and_go_on_together(policy):
    from penchant.rl.sampling.prefill import read_prompts

    prompts = sorted(PROMPTS, key=len)
    with torch.no_grad(), policy.plain_attention():
        together = read_prompts(policy.model, prompts, 0)
        for i, prompt in enumerate(prompts):
            alone = policy.model(torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(together.logits[i], alone, rtol=1e-4, atol=1e-4)
            assert together.mask[i].sum() == len(prompt)
    width = max(map(len, prompts))
    assert together.mask.shape == (4, width)
    assert together.cache.layers[0].keys.shape[::2] == (4, width)


STATES = ["qwen3_5_text", "granitemoehybrid", "falcon_h1", "lfm2", "mamba"]


@pytest.mark.parametrize("family", STATES)
def test_models_without_keys_and_values_are_sampled_from_as_they_score(family, make_model):
    scorer = PolicyScorer(make_model(family), 0).eval()
    scorer.use(ScoringPlan(packed=family != "mamba", fused_head=True, kernel="sdpa"))
    scorer.causal_model.generation_config.repetition_penalty = 5.0  # not of the policy
    sampler = CachedSampler(scorer, [2, 5, 9], batch_size=4)
    for temperature in (0, 1.0):
        sampling = Sampling(8, temperature=temperature)
        drawn = sampler.sample(PROMPTS, Draw(sampling, seed=1, n=2))
        assert drawn == sampler.sample(PROMPTS, Draw(sampling, seed=1, n=2))
        for prompt, (first, second) in zip(PROMPTS, drawn, strict=True):
            assert temperature or first.ids == second.ids
            batch = scorer.batch([Group(prompt, (first.ids, second.ids))])
            with torch.no_grad():
                expected = scorer(batch)
            drawn_logprobs = torch.tensor([*first.logprobs, *second.logprobs])
            torch.testing.assert_close(drawn_logprobs, expected, rtol=1e-3, atol=1e-3)
            ids = torch.tensor([[*prompt, *first.ids]])
            with torch.no_grad(), scorer.plain_attention():
                likeliest = scorer.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
            assert temperature or first.ids == likeliest.tolist()
            assert first.ended == (first.ids[-1] in (2, 5, 9))
    assert scorer.causal_model.generation_config.repetition_penalty == 5.0


def test_answers_end_where_the_model_has_no_more_positions(make_model, caplog):
    scorer = PolicyScorer(make_model("gpt2", n_positions=16, max_position_embeddings=16), 0)
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    (answers,) = CachedSampler(scorer, [], batch_size=2).sample(
        [[5] * 10], Draw(Sampling(12), seed=0, n=2)
    )
    assert [len(answer.ids) for answer in answers] == [6, 6]
    assert "the model has 16 positions" in caplog.text


MIXED = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 8,
}
WINDOWED = {
    "gemma2": {**MIXED, "attn_logit_softcapping": 2.0},
    "gemma3_text": MIXED,
    "gpt_oss": {**MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mistral": {"sliding_window": 4},
}


@pytest.mark.parametrize("family", WINDOWED)
def test_models_with_windows_caps_and_sinks_are_sampled_from_as_they_score(family, make_model):
    """Windows shorter and longer than prompts; rows leave the batch while others go on."""
    scorer = PolicyScorer(make_model(family, **WINDOWED[family]), 0).eval()
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    ends = list(range(2, 12))
    sampler = CachedSampler(scorer, ends, batch_size=4)
    answers = sampler.sample(PROMPTS, Draw(Sampling(12), seed=1, n=3))
    assert len({len(c.ids) for own in answers for c in own}) > 2
    groups = [Group(p, tuple(c.ids for c in own)) for p, own in zip(PROMPTS, answers, strict=True)]
    with torch.no_grad():
        scored = scorer(scorer.batch(groups))
    sampled = torch.tensor([p for own in answers for c in own for p in c.logprobs])
    torch.testing.assert_close(scored, sampled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
@pytest.mark.parametrize("has_values", [True, False])
def test_entropies_and_values_that_are_told_are_those_that_scoring_finds(
    has_values, filters, tiny_model_dir
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    head = make_value_head(model) if has_values else None
    if head is not None:
        torch.nn.init.normal_(head.weight)
    policy = PolicyScorer(model, 0, value_head=head).eval()
    policy.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    sampler = CachedSampler(policy, [2, 5, 9, *range(40, 80)], batch_size=5)
    found = sampler.sample(PROMPTS, Draw(Sampling(16, **filters), seed=1, n=3, tells=True))
    policy.sample_from(**{"temperature": 1.0, **filters})
    with torch.no_grad():
        groups = [Group(p, tuple(c.ids for c in cs)) for p, cs in zip(PROMPTS, found, strict=True)]
        scored = policy(policy.batch(groups), policy=True)
    completions = [completion for row in found for completion in row]
    assert len({len(one.ids) for one in completions}) > 1  # rows have left the batch
    for name, expected in (("logprobs", scored.logprobs), ("entropies", scored.entropy),
                           ("values", scored.values)):  # fmt: skip
        told = torch.tensor([value for one in completions for value in getattr(one, name)])
        if expected is None:
            assert not len(told)
        else:
            torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-5)
    plain = sampler.sample(PROMPTS, Draw(Sampling(16, **filters), seed=1, n=3))
    assert [c.ids for row in plain for c in row] == [c.ids for c in completions]
    assert not any(c.entropies for row in plain for c in row)
