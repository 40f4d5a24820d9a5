"""Experts: their balance is a loss, and their weights can have adapters that are saved whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import penchant
from penchant.core.errors import ModelError
from penchant.data.batch import Group
from penchant.models.architecture import router_coefficient
from penchant.models.lora import add_lora
from penchant.models.router import RouterLoss
from penchant.models.save import save_model
from penchant.models.scoring import PLAIN, Scorer, ScoringPlan

EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **{"head_dim": 8, "decoder_sparse_step": 1},
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        **{"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
    },
}
ONE = [Group([1, 5, 6, 7, 8], ([9, 10, 11, 2],))]
IDS = torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11, 2]])
TWO = [Group([1, 5], ([9, 10, 2], [12, 2])), Group([1], ([3, 4],))]


def balanced(model: Any, groups: Any, plan: ScoringPlan) -> Any:
    scorer = Scorer(model, 0).train()
    scorer.router = RouterLoss(scorer.causal_model, 0.5)
    scorer.use(plan)
    scorer(scorer.batch(groups))
    return scorer.router.take()


@pytest.mark.parametrize("fused", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("family", EXPERTS)
def test_the_loss_and_its_gradient_are_the_models_own(family, fused, make_model):
    model = make_model(family, **EXPERTS[family]).train()
    own = model(input_ids=IDS, output_router_logits=True).aux_loss
    weights = [p for name, p in model.named_parameters() if "lm_head" not in name]
    wanted = torch.autograd.grad(own, weights, allow_unused=True)
    found = balanced(model, ONE, ScoringPlan(packed=fused, fused_head=fused, kernel="sdpa"))
    torch.testing.assert_close(found, own)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights, allow_unused=True), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padding_is_left_out_and_a_shared_prompt_counts_once(make_model):
    model = make_model("mixtral", **EXPERTS["mixtral"])
    scorer = Scorer(model, 0)
    batch = scorer.batch(TWO)
    assert batch.attention_mask.sum() < batch.attention_mask.numel()
    own = model(batch.input_ids, batch.attention_mask, output_router_logits=True).aux_loss
    torch.testing.assert_close(balanced(model, TWO, PLAIN), own)

    packed = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
    logits: list[Any] = []
    for ids in ([1, 5, 9, 10, 2], [1, 5, 12, 2], [1, 3, 4]):
        with torch.no_grad():
            out = model.model(torch.tensor([ids]), output_router_logits=True)
            logits.append(out.router_logits)
    once = [slice(0, 5), slice(2, 4), slice(0, 3)]  # the second row's prompt is the first's
    layers = tuple(
        torch.cat([row[layer][cut] for row, cut in zip(logits, once, strict=True)])
        for layer in (0, 1)
    )
    expected = RouterLoss(model, 1.0)
    expected.add(layers, None)
    torch.testing.assert_close(balanced(model, TWO, packed), expected.take())


def test_nothing_is_asked_of_routers_without_a_gradient(make_model):
    scorer = Scorer(make_model("mixtral", **EXPERTS["mixtral"]), 0).train()
    scorer.router = RouterLoss(scorer.causal_model, 0.5)
    with torch.no_grad():
        scorer(scorer.batch(ONE))
    scorer.eval()(scorer.batch(ONE))
    assert scorer.router.take() is None


def test_the_coefficient_is_the_models_own_unless_one_is_given(make_model):
    experts = make_model("mixtral", router_aux_loss_coef=0.25, **EXPERTS["mixtral"]).config
    assert [router_coefficient(experts, one, "m") for one in (None, 0.5, 0.0)] == [0.25, 0.5, 0.0]
    dense = make_model("llama").config
    assert [router_coefficient(dense, one, "m") for one in (None, 0.0)] == [0.0, 0.0]
    with pytest.raises(ModelError, match=r"router_aux_loss_coef is 0\.5, and m \(llama\) has no"):
        router_coefficient(dense, 0.5, "m")


def test_a_run_adds_the_loss_and_logs_it(make_model, tiny_keys, tiny_model_dir, tmp_path):
    settings = {**EXPERTS["mixtral"], "vocab_size": 259, "num_local_experts": 4}
    make_model("mixtral", **settings, router_aux_loss_coef=0.5).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "base")
    keys = {**tiny_keys, "model": str(tmp_path / "base"), "max_steps": 1, "logging_steps": 1}
    steps = {}
    for name, given in (("own", None), ("off", 0.0)):
        penchant.train("dpo", output=tmp_path / name, router_aux_loss_coef=given, **keys)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        steps[name] = next(one for one in map(json.loads, lines) if "loss" in one)
    assert "router_aux_loss" not in steps["off"]
    balance = steps["own"]["router_aux_loss"]
    assert balance > 1.5  # as many experts as serve a token where all are used alike
    assert steps["own"]["loss"] - steps["off"]["loss"] == pytest.approx(0.5 * balance, abs=1e-5)


@pytest.mark.parametrize("family", EXPERTS)
def test_adapters_of_experts_are_saved_and_merged_with_equal_logits(
    family, make_model, tiny_model_dir, tmp_path
):
    make_model(family, **EXPERTS[family]).save_pretrained(tmp_path / "base")
    base: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        before = base(input_ids=IDS).logits
    model = add_lora(
        base, r=2, alpha=4, dropout=0.0, target_modules="q_proj",
        target_parameters="mlp.experts.gate_up_proj, mlp.experts.down_proj",
    ).eval()  # fmt: skip
    trained = {n.split("layers.0.")[1] for n, p in model.named_parameters()
               if p.requires_grad and "layers.0." in n}  # fmt: skip
    assert sum("experts" in name for name in trained) == 4
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    assert (expected - before).abs().max() > 0.01
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for merged in (False, True):
        save_model(model, tokenizer, tmp_path / str(merged), merged=merged)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        reopened = PeftModel.from_pretrained(fresh, tmp_path / "False").eval()
        torch.testing.assert_close(reopened(input_ids=IDS).logits, expected)
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "True").eval()
        torch.testing.assert_close(whole(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_parameters_that_match_nothing_are_met_with_the_nearest(make_model):
    model = make_model("mixtral", **EXPERTS["mixtral"])
    with pytest.raises(ModelError, match=r"called mlp.experts.gate_proj; nearest are .*gate_up_pr"):
        add_lora(
            model, r=2, alpha=4, dropout=0.0, target_modules="q_proj",
            target_parameters="mlp.experts.gate_proj",
        )  # fmt: skip
