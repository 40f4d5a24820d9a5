"""Scores of completions, as transformers itself gives them row by row."""

from __future__ import annotations

import pytest
import torch

from penchant.data.batch import Group
from penchant.models.lora import add_lora
from penchant.models.reward_scorer import RewardScorer
from penchant.models.scoring import PLAIN, ScoringPlan
from penchant.models.selfcheck import plan_scoring

PLANS = {
    "packed": ScoringPlan(packed=True, fused_head=True, kernel="sdpa"),
    "padded": ScoringPlan(packed=False, fused_head=True, kernel="sdpa"),
    "plain": PLAIN,
}
END = 2


def scorer_for(model, layout, pad=0):
    model.config.pad_token_id = pad
    scorer = RewardScorer(model, pad)
    scorer.use(PLANS[layout])
    return scorer


@torch.no_grad()
def row_by_row(model, groups, pad=0):
    """By transformers alone, one sequence at a time, so that nothing is padded."""
    model.config.pad_token_id = pad
    rows = [[*group.prompt, *c] for group in groups for c in group.completions]
    return torch.cat([model(input_ids=torch.tensor([row])).logits.squeeze(-1) for row in rows])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "phi", "gemma3_text"])
@pytest.mark.parametrize("layout", PLANS)
@pytest.mark.parametrize("pad", [0, END], ids=["pad", "pad is end"])
def test_scores_are_those_of_transformers_row_by_row(family, layout, pad, make_score_model):
    groups = [
        Group([1, 5, 6, 7, 8], ([9, 10, 11, END], [12, 13, END])),
        Group([1], ([14, 15], [15, 16, 17, 18, 19, 20, END])),
        Group([1, 21, 22], ([24, END, 25, END, END], [24, END], [26])),
    ]
    expected = row_by_row(make_score_model(family), groups, pad)
    scorer = scorer_for(make_score_model(family), layout, pad)
    with torch.no_grad():
        found = scorer(scorer.batch(groups))
    assert found.shape == (7,)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_padded_rows_are_scored_as_transformers_scores_a_padded_batch(make_score_model):
    """Whoever loads the model pads, too: with the end token, if that is the padding."""
    groups = [Group([1, 5, 6], ([9, 10, 11, END], [12, END]))]
    for pad in (0, END):
        scorer = scorer_for(make_score_model(), "packed", pad)
        batch = scorer_for(make_score_model(), "padded", pad).batch(groups)
        with torch.no_grad():
            theirs = scorer_for(make_score_model(), "plain", pad).causal_model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            )
            found = scorer(scorer.batch(groups))
        torch.testing.assert_close(found, theirs.logits.squeeze(-1), rtol=1e-5, atol=1e-6)


def test_score_stands_before_the_end_token_only_where_that_is_the_padding(make_score_model):
    group = Group([1, 5, 6], ([9, 10, END], [11]))
    padded_with_end = scorer_for(make_score_model(), "packed", END).batch([group])
    padded_with_other = scorer_for(make_score_model(), "packed", 0).batch([group])
    assert padded_with_end.ends.tolist() == [4, 6]
    assert padded_with_other.ends.tolist() == [5, 6]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_gradients_are_those_of_transformers_row_by_row(lora, layout, make_score_model, groups):
    def build():
        model = make_score_model("gpt2", dtype="float64")  # fp64 throughout
        if lora:
            torch.manual_seed(4)
            model = add_lora(
                model, r=2, alpha=4, dropout=0.0, target_modules="all-linear", task_type="SEQ_CLS"
            )
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        return model

    factors = torch.linspace(-1, 2, 8, dtype=torch.float64)
    plain = build()
    rows = [[*group.prompt, *c] for group in groups for c in group.completions]
    scores = [plain(input_ids=torch.tensor([row])).logits.squeeze() for row in rows]
    (torch.stack(scores) * factors).sum().backward()
    model = build()
    scorer = RewardScorer(model, 0)
    scorer.use(PLANS[layout])
    (scorer(scorer.batch(groups)) * factors).sum().backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    assert any("score" in name for name in expected)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-11)


def test_score_head_is_trained_as_a_whole_beside_an_adapter(make_score_model):
    model = add_lora(
        make_score_model(), r=2, alpha=4, dropout=0.0, target_modules="q_proj", task_type="SEQ_CLS"
    )
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("score" in name for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_reward_models_of_every_precision_are_packed_and_score_in_fp32(
    dtype, autocast, lora, make_score_model, groups
):
    """The head's one row a completion is not rounded: scores of a pair are compared finely."""
    model = make_score_model(dtype=dtype)
    if lora:
        model = add_lora(
            model, r=2, alpha=4, dropout=0.0, target_modules="all-linear", task_type="SEQ_CLS"
        )
    scorer = RewardScorer(model, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plan = plan_scoring(scorer, groups, attention="auto", max_length=64)
        with torch.no_grad():
            found = scorer(scorer.batch(groups))
    assert plan == PLANS["packed"]
    assert found.dtype == torch.float32
    expected = row_by_row(make_score_model(dtype=dtype).float(), groups)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.std()) + 0.02)
    assert (found.bfloat16().float() != found).any()
