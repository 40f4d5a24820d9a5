"""Sampled answers: greedy, each as if it were alone, and ended where the model ends them."""

from __future__ import annotations

import pytest
import torch

from penchant.models.load import load_causal_model, load_tokenizer
from penchant.models.lora import add_lora
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.rl.sampling.answers import answer_prompts

PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
PROMPTS = [[10, 11, 12, 13, 14, 15], [20], [30, 31, 32], [40, 41]]


@pytest.fixture
def tokenizer(tiny_model_dir):
    return load_tokenizer(str(tiny_model_dir))


@pytest.fixture
def make_scorer(tiny_model_dir, tokenizer):
    """A packed scorer whose model likes some tokens much better than others."""

    def make(lora=False):
        model = load_causal_model(str(tiny_model_dir), dtype=torch.float32)
        with torch.no_grad():
            model.lm_head.weight.mul_(20)
        if lora:
            model = add_lora(model, r=2, alpha=4, dropout=0.5, target_modules="all-linear")
        scorer = Scorer(model, tokenizer.pad_token_id)
        scorer.use(PACKED)
        return scorer

    return make


def answers(scorer, tokenizer, prompts=PROMPTS, *, ends=(), max_new_tokens=12, batch_size=8):
    return answer_prompts(
        scorer,
        tokenizer,
        prompts,
        end_token_ids=ends,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )


def greedy(model, prompt, length):
    """One token after another, without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(length):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers_are_greedy_and_do_not_depend_on_what_else_is_in_the_batch(
    make_scorer, tokenizer, batch_size
):
    found = answers(make_scorer(), tokenizer, batch_size=batch_size)
    with (scorer := make_scorer()).plain_attention():
        for prompt, answer in zip(PROMPTS, found, strict=True):
            expected = greedy(scorer.model, prompt, 12)
            if tokenizer.eos_token_id in expected:
                expected = expected[: expected.index(tokenizer.eos_token_id)]
            assert answer.num_tokens == len(expected)
            assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_an_answer_stops_before_any_of_the_end_tokens_and_says_so(make_scorer, tokenizer):
    whole = answers(make_scorer(), tokenizer)[0]
    assert not whole.ended
    assert whole.num_tokens == 12
    with (scorer := make_scorer()).plain_attention():
        tokens = greedy(scorer.model, PROMPTS[0], 12)
    end = tokens[5]
    cut = answers(make_scorer(), tokenizer, ends=[end])[0]
    assert cut.ended
    assert cut.num_tokens == tokens.index(end)
    assert cut.text == tokenizer.decode(tokens[: tokens.index(end)]).strip()


def test_sampling_leaves_random_state_mode_and_layout_as_they_were(make_scorer, tokenizer):
    scorer = make_scorer(lora=True).train()
    state = torch.get_rng_state()
    first = answers(scorer, tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert scorer.training
    assert scorer.plan == PACKED
    assert answers(scorer, tokenizer) == first
