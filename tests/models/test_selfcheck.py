"""The fast path is used where it agrees with a plain forward, and left with one warning else."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers.models.gemma3 import modeling_gemma3

from penchant.core.errors import TrainingError
from penchant.data.batch import Group
from penchant.models import attention, attention_cpu, attention_gpu
from penchant.models.lora import add_lora
from penchant.models.scoring import PLAIN, Scorer, ScoringPlan
from penchant.models.selfcheck import LEAST_ROW, MEAN_IN_HALF, filled, plan_scoring


def planned(model, groups, caplog, *, attention="auto", max_length=64):
    """The scorer, its plan, and the warnings on the way."""
    caplog.clear()
    scorer = Scorer(model, 0)
    with caplog.at_level(logging.WARNING, logger="penchant"):
        plan = plan_scoring(scorer, groups, attention=attention, max_length=max_length)
    assert scorer.plan == plan
    return scorer, plan, [r.getMessage() for r in caplog.records if r.name == "penchant"]


def assert_right(scorer, model, groups, plain_logprobs):
    with torch.no_grad():
        found = scorer(scorer.batch(groups))
        expected = plain_logprobs(model, groups)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "mistral", "phi", "granite", "cohere", "gemma3_text", "gpt2"]
)
def test_a_model_that_the_hook_serves_is_packed_without_a_word(family, make_model, groups, caplog):
    _, plan, warnings = planned(make_model(family), groups, caplog)
    assert plan == ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
    assert warnings == []


MIXED = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 4}),
        ("gemma2", {}),
        ("gemma2", {"sliding_window": 3}),
        ("gemma3_text", MIXED),
        ("gpt_oss", {**MIXED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_windows_caps_and_sinks_are_packed_without_a_word(
    family, changes, make_model, groups, caplog, plain_logprobs
):
    scorer, plan, warnings = planned(make_model(family, **changes), groups, caplog)
    assert plan == ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
    assert warnings == []
    assert_right(scorer, make_model(family, **changes), groups, plain_logprobs)


@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {"attention_dropout": 0.1}), ("gpt2", {"attn_pdrop": 0.1})]
)
def test_attention_dropout_falls_back_and_says_what_to_set(
    family, changes, make_model, groups, caplog
):
    _, plan, warnings = planned(make_model(family, **changes), groups, caplog)
    assert not plan.packed
    assert f"attention dropout is on; set {next(iter(changes))} to 0" in warnings[0]
    frozen = make_model(family, **changes).requires_grad_(False)
    assert planned(frozen, groups, caplog)[1].packed


def test_state_space_layers_fall_back(groups, caplog, plain_logprobs):
    from transformers import AutoModelForCausalLM, MambaConfig

    def make():
        torch.manual_seed(0)
        config = MambaConfig(
            vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0
        )
        return AutoModelForCausalLM.from_config(config).eval()

    scorer, plan, warnings = planned(make(), groups, caplog)
    assert not plan.packed
    assert len(warnings) == 1
    assert_right(scorer, make(), groups, plain_logprobs)


def test_a_model_that_ignores_the_hook_is_found_out_and_repeats_prompts(
    make_model, groups, caplog, plain_logprobs
):
    """Its attention sees the whole row, so packed completions would see each other.

    With repeated prompts transformers' own mask keeps the texts of a row apart.
    """
    from transformers.models.llama import modeling_llama

    class Stubborn(modeling_llama.LlamaAttention):
        def forward(self, hidden_states, position_embeddings, attention_mask=None, **_):
            config, self.config = self.config, plain_config
            try:
                return super().forward(hidden_states, position_embeddings, attention_mask)
            finally:
                self.config = config

    model = make_model()
    plain_config = make_model(attn_implementation="sdpa").config
    for layer in model.model.layers:
        layer.self_attn.__class__ = Stubborn
    scorer, plan, warnings = planned(model, groups, caplog)
    assert plan == ScoringPlan(False, True, "sdpa", plan.reason, repeated=True)
    assert len(warnings) == 1
    assert "packed log-probs differ from a plain forward" in warnings[0]
    assert "first in layer 1 of 2 (full_attention)" in warnings[0]
    assert "layout: packed, prompts repeated" in warnings[0]
    batch = scorer.batch(groups)
    assert batch.layout == "repeated"
    assert batch.input_ids.shape == (1, batch.num_tokens)
    assert_right(scorer, make_model(), groups, plain_logprobs)


class Shortsighted(modeling_gemma3.Gemma3Attention):
    """Tells the hook of no window, only its own attention."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **others):
        if "segments" in others:
            self.sliding_window = attention_mask = None
        return super().forward(hidden_states, position_embeddings, attention_mask, **others)


def test_a_window_longer_than_the_first_records_is_checked_all_the_same(
    make_model, groups, caplog, plain_logprobs
):
    def make():
        kinds = ["full_attention", "sliding_attention"]
        model = make_model("gemma3_text", layer_types=kinds, sliding_window=20)
        model.model.layers[1].self_attn.__class__ = Shortsighted
        return model

    scorer, plan, warnings = planned(make(), groups, caplog)
    assert plan.layout == "repeated"
    assert "first in layer 2 of 2 (sliding_attention)" in warnings[0]
    assert_right(scorer, make(), groups, plain_logprobs)
    # No record of the run is longer than the window: nothing can go wrong.
    assert planned(make(), groups, caplog, max_length=20)[1].packed


def test_a_head_that_is_more_than_a_matrix_is_found_out(make_model, groups, caplog, plain_logprobs):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return super().forward(2 * x)

    def make():
        model = make_model()
        model.lm_head.__class__ = Doubled
        return model

    scorer, plan, warnings = planned(make(), groups, caplog)
    assert plan == ScoringPlan(True, False, "sdpa", reason=plan.reason)
    assert len(warnings) == 1
    assert "the head is a Doubled" in warnings[0]
    assert_right(scorer, make(), groups, plain_logprobs)


def test_a_head_without_a_weight_of_its_own_is_run_as_it_is(
    make_model, groups, caplog, plain_logprobs
):
    def make():
        model = make_model()
        model.lm_head = torch.nn.Sequential(model.lm_head)
        return model

    scorer, plan, warnings = planned(make(), groups, caplog)
    assert (plan.packed, plan.fused_head) == (True, False)
    assert "AttributeError in the sdpa pass" in warnings[0]
    assert_right(scorer, make(), groups, plain_logprobs)


class OneArgument(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, **kwargs):
        if "segments" in kwargs:
            raise TypeError("unexpected keyword argument 'segments'")
        return self.inner(x, **kwargs)


def broken_on_packed_rows(make_model):
    model = make_model()
    model.model.layers[0] = OneArgument(model.model.layers[0])
    return model


def test_a_forward_that_breaks_on_packed_rows_falls_back(make_model, groups, caplog):
    _, plan, warnings = planned(broken_on_packed_rows(make_model), groups, caplog)
    assert plan.layout == "repeated"
    assert "TypeError in the sdpa pass: unexpected keyword argument 'segments'" in warnings[0]
    assert "first in layer 1 of 2" in warnings[0]


def test_logprobs_that_are_not_numbers_never_pass_the_check(make_model, groups, caplog):
    model = make_model()
    model.lm_head.weight.data[5] = torch.nan
    _, plan, warnings = planned(model, groups, caplog)
    assert (plan.packed, plan.fused_head) == (False, False)
    assert "nan" in warnings[0]


@pytest.mark.parametrize("chosen", ["plain", "sdpa", "flex"])
def test_the_attention_key_chooses_the_layout_and_the_kernel(
    chosen, make_model, groups, caplog, plain_logprobs
):
    # FlexAttention on the CPU runs forward alone, so that nothing may be trained here.
    model = make_model().requires_grad_(False)
    scorer, plan, warnings = planned(model, groups, caplog, attention=chosen)
    assert plan.packed == (chosen != "plain")
    assert plan.kernel == ("flex" if chosen == "flex" else "sdpa")
    assert warnings == []
    assert_right(scorer, make_model(), groups, plain_logprobs)


def test_flex_that_cannot_run_backward_falls_to_packed_sdpa_with_one_warning(
    make_model, groups, caplog, plain_logprobs
):
    """FlexAttention on the CPU refuses to: its forward alone would have passed the check."""
    scorer, plan, warnings = planned(make_model(), groups, caplog, attention="flex")
    assert plan == ScoringPlan(packed=True, fused_head=True, kernel="sdpa", reason=plan.reason)
    assert len(warnings) == 1
    assert "in the flex pass: FlexAttention does not support backward on CPU" in warnings[0]
    assert scorer.batch(groups).segments is not None
    assert_right(scorer, make_model(), groups, plain_logprobs)


def test_flex_that_computes_something_else_falls_to_packed_sdpa_before_padding(
    make_model, groups, caplog, plain_logprobs, monkeypatch
):
    right = attention_gpu.flex
    monkeypatch.setattr(attention_gpu, "flex", lambda *given: 1.1 * right(*given))
    model = make_model().requires_grad_(False)
    scorer, plan, warnings = planned(model, groups, caplog, attention="flex")
    assert (plan.packed, plan.fused_head, plan.kernel) == (True, True, "sdpa")
    assert len(warnings) == 1
    assert "packed log-probs differ from a plain forward" in warnings[0]
    assert_right(scorer, make_model(), groups, plain_logprobs)


def test_a_kernel_that_fails_in_backward_is_found_out_before_training(
    make_model, groups, caplog, plain_logprobs, monkeypatch
):
    class Failing(attention_cpu.SegmentAttention):
        @staticmethod
        def backward(ctx, grad_out):
            raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(attention_cpu, "SegmentAttention", Failing)
    scorer, plan, warnings = planned(make_model(), groups, caplog)
    assert (plan.layout, plan.fused_head) == ("repeated", True)
    assert len(warnings) == 1
    assert "RuntimeError in the sdpa pass: no kernel image is available" in warnings[0]
    assert_right(scorer, make_model(), groups, plain_logprobs)
    # Nothing is trained: nothing runs backward.
    assert planned(make_model().requires_grad_(False), groups, caplog)[1].packed


def test_the_check_leaves_no_gradients_behind(make_model, groups, caplog):
    scorer, plan, _ = planned(make_model(), groups, caplog)
    assert plan.packed
    assert all(p.requires_grad and p.grad is None for p in scorer.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_bf16_autocast_of_single_precision_weights_stays_packed(family, make_model, groups, caplog):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, plan, warnings = planned(make_model(family), groups, caplog)
    assert plan.packed, warnings


def test_bf16_weights_stay_packed_with_and_without_an_adapter(make_model, groups, caplog):
    assert planned(make_model(dtype="bfloat16"), groups, caplog)[1].packed
    base = make_model(dtype="bfloat16")
    lora = add_lora(base, r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, plan, warnings = planned(lora, groups, caplog)
    assert plan.packed, warnings


def test_the_check_ignores_dropout_and_leaves_training_mode_as_it_was(make_model, groups, caplog):
    model = add_lora(make_model(), r=2, alpha=4, dropout=0.5, target_modules="all-linear")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    scorer = Scorer(model, 0).train()
    assert plan_scoring(scorer, groups, attention="auto", max_length=64).packed
    assert scorer.training
    assert not any(p.grad is not None for p in model.parameters())


def test_a_scorer_is_plain_until_it_is_planned(make_model):
    assert Scorer(make_model(), 0).plan == PLAIN


def run_in_norm(model, action, *, packed):
    """Let the last norm of a model do something to its result, in one of the two layouts."""
    name = attention.NAME

    def hook(module, inputs, output):
        there = (model.config._attn_implementation == name) == packed
        return action(output) if there else output

    model.model.norm.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_running_out_of_memory_in_either_pass_ends_with_what_to_set(
    dtype, packed, make_model, groups
):
    """The layouts that come next need more memory: it is not taken for a disagreement."""

    def exhausted(output):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    model = run_in_norm(make_model("llama", dtype=dtype), exhausted, packed=packed)
    with pytest.raises(TrainingError, match=r"tried to allocate 3 GiB; set a lower max_length"):
        plan_scoring(Scorer(model, 0), groups, attention="auto", max_length=64)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_memory_that_holds_no_fp32_pass_leaves_the_check_in_half_precision(
    make_model, groups, caplog
):
    def exhausted(output):
        if output.dtype == torch.float32:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return output

    for packed in (True, False):
        model = run_in_norm(make_model("llama", dtype="bfloat16"), exhausted, packed=packed)
        _, plan, warnings = planned(model, groups, caplog)
        assert plan.packed
        assert ["compared in half precision alone" in one for one in warnings] == [True]


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
def test_fault_as_small_as_rounding_is_found_in_fp32(autocast, make_model, groups, caplog):
    """States that are 1% too large move bf16 log-probs by less than 0.05 nats per token."""
    model = make_model("llama", dtype="float32" if autocast else "bfloat16")
    run_in_norm(model, lambda states: 1.01 * states, packed=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scorer, plan, (warning,) = planned(model, groups, caplog)
        assert not plan.packed
        assert "in fp32, largest" in warning
        scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
        with torch.no_grad():
            wrong = scorer(scorer.batch(groups))
            scorer.use(PLAIN)
            right = scorer(scorer.batch(groups))
    assert (wrong - right).abs().mean() < MEAN_IN_HALF
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_fault_of_half_precision_alone_is_held_against_what_rounding_does(
    make_model, groups, caplog
):
    """A kernel that is right in fp32 and loses more than rounding in bf16."""

    def coarse(states):
        return 1.02 * states if states.dtype == torch.bfloat16 else states

    model = run_in_norm(make_model("llama", dtype="bfloat16"), coarse, packed=True)
    _, plan, (warning,) = planned(model, groups, caplog)
    assert not plan.packed
    assert "mean" in warning


def test_short_records_are_repeated_until_the_row_is_as_long_as_those_that_train():
    short, long = Group([1] * 20, ([2] * 5, [3] * 6)), Group([1] * 200, ([2] * 80,))
    assert filled([long]) == [long]
    rows = filled([short, short])
    assert sum(group.num_tokens for group in rows) >= LEAST_ROW
    assert sum(group.num_tokens for group in rows[:-2]) < LEAST_ROW


class Two(SimpleNamespace):
    """This process, the second, and a first one that finds these reasons, in order."""

    def __init__(self, *reasons):
        super().__init__(rank=1, size=2, told=[], others=iter(reasons))

    def gather(self, own):
        self.told.append(own)
        return [next(self.others, ""), own]


def test_what_cannot_serve_another_process_is_not_taken_here(make_model, groups):
    """Else they would lay out, and with a token budget divide, the same records otherwise."""
    own = Two()
    expected = plan_scoring(
        Scorer(broken_on_packed_rows(make_model), 0),
        groups,
        attention="auto",
        max_length=64,
        team=own,
    )
    scorer, other = Scorer(make_model(), 0), Two(*own.told)
    plan = plan_scoring(scorer, groups, attention="auto", max_length=64, team=other)
    assert scorer.plan == plan
    assert plan.layout == expected.layout == "repeated"
    assert "TypeError in the sdpa pass" in plan.reason
    # They have told each other of the same plans.
    assert len(other.told) == len(own.told) > 1
    assert not any(other.told)


def test_a_pass_that_fails_where_others_wait_in_it_ends_the_run(make_model, groups):
    scorer = Scorer(broken_on_packed_rows(make_model), 0)
    scorer.unshard = None  # as of weights that processes divide
    keys = {"attention": "auto", "max_length": 64}
    with pytest.raises(
        TrainingError, match=r"process 1: TypeError in the sdpa pass.*sdpa or plain"
    ):
        plan_scoring(scorer, groups, team=Two(), **keys)
    assert plan_scoring(scorer, groups, **keys).layout == "repeated"
