"""Layers with a state along the sequence run on packed rows as each completion would run alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.batch import Group
from penchant.models.architecture import stateful_modules
from penchant.models.lora import add_lora
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.models.selfcheck import plan_scoring

STATEFUL = ["qwen3_5_text", "qwen3_next", "granitemoehybrid", "nemotron_h", "falcon_h1", "lfm2"]
PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
# One, two and four completions; a prompt of one token; lengths that make two batches of rows.
GROUPS = [
    Group([1, 5, 6, 7, 8], ([9, 10, 11, 2],)),
    Group([1], ([14], [15, 16, 17, 18, 19, 20, 2])),
    Group([1, 21, 22, 23], ([24, 25, 2], [24, 26, 2], [2], [27] * 30)),
    Group([1, 27], ([29, 2], [30, 2])),
]


def scored(model, groups=GROUPS):
    scorer = Scorer(model, 0)
    scorer.use(PACKED)
    return scorer(scorer.batch(groups))


def gradients(logprobs, parameters):
    weights = torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)
    return torch.autograd.grad((logprobs * weights).sum(), parameters)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("family", STATEFUL)
def test_logprobs_and_gradients_equal_those_of_each_completion_alone(
    family, training, make_model, plain_logprobs
):
    # torch has no product of experts in fp64.
    dtype = "float32" if family == "qwen3_next" else "float64"
    model = make_model(family, dtype=dtype).train(training)
    expected = plain_logprobs(model, GROUPS)
    weights = trained(model)
    wanted = gradients(expected, weights)
    found = scored(model).double()
    # Scans and norms compute in fp32 whatever the weights are.
    close = {"rtol": 0, "atol": 1e-6 if family == "lfm2" else 2e-5}
    torch.testing.assert_close(found, expected, **close)
    for ours, theirs in zip(gradients(found, weights), wanted, strict=True):
        scale = 1 + theirs.double().abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, **close)


@pytest.mark.parametrize("family", STATEFUL)
def test_the_self_check_takes_the_packed_layout(family, make_model, caplog):
    plan = plan_scoring(Scorer(make_model(family), 0), GROUPS, attention="auto", max_length=64)
    assert (plan, caplog.messages) == (PACKED, [])


def test_checkpointed_layers_are_laid_out_again_in_the_backward_pass(make_model):
    model = make_model("qwen3_5_text").train()
    weights = trained(model)
    wanted = gradients(scored(model), weights)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    once, other = scored(model), scored(model, GROUPS[2:])
    other.sum().backward()  # another batch in between
    for ours, theirs in zip(gradients(once, weights), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_adapters_inside_get_the_gradients_that_each_completion_alone_gives(
    make_model, plain_logprobs
):
    model = add_lora(
        make_model("qwen3_5_text"), r=4, alpha=8, dropout=0.0, target_modules="all-linear"
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    weights = trained(model)
    assert any("in_proj_qkv" in name for name, p in model.named_parameters() if p.requires_grad)
    wanted = gradients(plain_logprobs(model, GROUPS), weights)
    for ours, theirs in zip(gradients(scored(model), weights), wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4)


def test_a_prompt_is_multiplied_once_however_many_answer_it(make_model):
    model = make_model("qwen3_5_text")
    rows = []
    for layer in (model.model.layers[0].linear_attn.out_proj, model.model.layers[0].mlp.up_proj):
        forward = type(layer).forward

        def counted(self, x, forward=forward):
            rows.append(x.numel() // x.shape[-1])
            return forward(self, x)

        layer.__class__ = type("Counted", (type(layer),), {"forward": counted})
    with torch.no_grad():
        scored(model, [Group([1] * 9, ([5], [6, 2], [7, 8, 2]))])
    assert rows == [9 + 1 + 2 + 3] * 2


def test_a_model_runs_as_it_came_once_its_rows_are_no_longer_packed(make_model):
    model = make_model("qwen3_5_text")
    ids = torch.tensor([[1, 5, 6, 7]])
    before = model(input_ids=ids).logits
    scorer = Scorer(model, 0)
    scorer.use(PACKED)
    with pytest.raises(ValueError, match="GatedDeltaNet is not told where the segments"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with scorer.plain_attention():
        twin = copy.deepcopy(model)  # as a frozen reference is made
        for own in (model, twin):
            assert all("forward" not in vars(module) for module in own.modules())
            torch.testing.assert_close(own(input_ids=ids).logits, before, rtol=0, atol=0)
    assert "forward" in vars(model.model.layers[0].linear_attn)


def test_what_carries_a_state_is_known_by_what_it_owns(make_model):
    kinds = {
        family: [type(module).__name__ for module in stateful_modules(make_model(family))]
        for family in ("llama", "gemma3_text", "qwen3_5_text", "falcon_h1", "lfm2")
    }
    assert kinds == {
        "llama": [],
        "gemma3_text": [],
        "qwen3_5_text": ["Qwen3_5GatedDeltaNet"],
        "falcon_h1": ["FalconH1Mixer"] * 2,
        "lfm2": ["Lfm2ShortConv"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", STATEFUL)
def test_adapters_and_merged_weights_open_in_transformers(family, make_model, assert_saved_opens):
    assert_saved_opens(make_model(family))


tokens = st.lists(st.integers(3, 96), min_size=1, max_size=12)
some_groups = st.lists(
    st.builds(Group, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(groups=some_groups)
def test_any_lengths_and_numbers_of_completions_come_out_as_alone(
    groups, make_model, plain_logprobs
):
    model = make_model("lfm2", dtype="float64")
    with torch.no_grad():
        expected = plain_logprobs(model, groups)
        torch.testing.assert_close(scored(model, groups), expected)
