"""Adapters of every kind that PEFT makes: trained, switched off, saved and merged as PEFT's own."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from penchant.core.errors import ModelError
from penchant.models.adapter_starts import other_start
from penchant.models.lora import add_lora
from penchant.models.merging import merge_adapter
from penchant.models.reference import AdapterReference
from penchant.models.reference_copy import frozen_copy
from penchant.models.save import save_model
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.objectives.held_out import score_both

IDS = torch.tensor([[1, 5, 6, 7], [8, 9, 10, 11]])
TOKENS = [5, 9, 96]
SETTINGS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "bias": {"bias": "all"},
    "layers": {"layers_to_transform": [1]},
    "patterns": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}},
    "lora-bias": {"lora_bias": True},  # of phi, whose biases take it up
    "whole-ends": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "some-tokens": {"trainable_token_indices": TOKENS},
}
TIED = ("whole-ends", "some-tokens")


def make(make_model: Any, name: str) -> Any:
    family = "phi" if "bias" in name else "llama"
    return make_model(family, tie_word_embeddings=name in TIED)


def trained(model: Any) -> Any:
    """The model after training has changed all that it may."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def ours(model: Any, name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    keys = {"r": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": "all-linear", **changes}
    return add_lora(model, settings=SETTINGS[name], **keys)


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_and_gradients_are_pefts(name: str, make_model: Any, tmp_path: Path) -> None:
    """In training, and again after saving, from the files and merged, through PEFT alone."""
    targets = ["q_proj", "v_proj"]
    found = trained(ours(make(make_model, name), name, target_modules=",".join(targets)))
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM", **SETTINGS[name]
    )
    base = make(make_model, name)
    torch.manual_seed(0)
    expected = trained(get_peft_model(base, config))
    logits = found(input_ids=IDS).logits
    torch.testing.assert_close(logits, expected(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    factors = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * factors).sum().backward()
    (expected(input_ids=IDS).logits * factors).sum().backward()
    theirs = dict(expected.named_parameters())
    for key, parameter in found.named_parameters():
        assert parameter.requires_grad == theirs[key].requires_grad, key
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[key].grad, rtol=1e-3, atol=1e-4)
    found.save_pretrained(tmp_path / "adapter")
    read = PeftModel.from_pretrained(make(make_model, name), tmp_path / "adapter").eval()
    torch.testing.assert_close(read(input_ids=IDS).logits, logits, rtol=1e-3, atol=1e-3)
    merge_adapter(found).save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(input_ids=IDS).logits, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_packed_layout_scores_and_refers_as_the_plain_one(
    name: str, make_model: Any, groups: Any, plain_logprobs: Any
) -> None:
    base = make(make_model, name)
    start = plain_logprobs(base, groups)
    scorer = Scorer(ours(base, name), 0)
    reference = frozen_copy(scorer) if name == "pissa" else None
    trained(scorer.model)
    expected = plain_logprobs(scorer.model, groups)
    plan = plan_scoring(scorer, groups[:2], attention="auto", max_length=64)
    assert plan.packed and plan.fused_head
    batch = scorer.batch(groups)
    torch.testing.assert_close(scorer(batch).double(), expected, rtol=1e-4, atol=1e-4)
    assert (expected - start).abs().max() > 0.01
    with (reference or AdapterReference(scorer)).active() as one:
        one.use(plan)
        found = one(batch).double()
    same = torch.allclose(found, start, rtol=1e-3, atol=1e-3)
    assert same == (name != "bias")  # a bias stays when the adapter is switched off


@pytest.mark.parametrize("name", ["dora", "lora-bias"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_a_head_whose_adapter_is_more_than_two_matrices_is_run_as_it_is(
    name: str, autocast: bool, make_model: Any, groups: Any, plain_logprobs: Any
) -> None:
    """Planned while its adapter is fresh, and changes nothing yet."""
    start = plain_logprobs(make(make_model, name), groups)
    scorer = Scorer(ours(make(make_model, name), name, target_modules="q_proj,lm_head"), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plan = plan_scoring(scorer, groups[:2], attention="auto", max_length=64)
        assert (plan.packed, plan.fused_head) == (True, False)
        assert "the head's adapter is more than a product of two matrices" in plan.reason
        with torch.no_grad(), scorer.generating():
            scorer.causal_model(input_ids=IDS)
    trained(scorer.model)
    batch = scorer.batch(groups)
    found = scorer(batch)
    with scorer.plain_attention():
        expected = plain_logprobs(scorer.model, groups)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert (expected - start).abs().max() > 0.01
    both = score_both(scorer, AdapterReference(scorer), groups, batch)
    torch.testing.assert_close(both.logprobs, found)
    lengths = [len(c) for group in groups for c in group.completions]
    sums = torch.stack([part.sum() for part in start.split(lengths)])
    assert both.ref_sums is not None
    torch.testing.assert_close(both.ref_sums.double(), sums, rtol=1e-3, atol=1e-3)
    found.sum().backward()
    more = "magnitude" if name == "dora" else "lora_B.default.bias"
    gradients = [p.grad for n, p in scorer.named_parameters() if "lm_head" in n and more in n]
    assert len(gradients) == 1 and gradients[0] is not None and gradients[0].abs().max() > 0


def test_tokens_that_were_added_are_trained_saved_and_merged(
    make_model: Any, tmp_path: Path
) -> None:
    base = make_model("llama", tie_word_embeddings=True)
    base.resize_token_embeddings(101, mean_resizing=False)
    base.save_pretrained(tmp_path / "base")
    added = [97, 98, 99, 100]
    model = add_lora(base, r=2, alpha=4, dropout=0.0, target_modules="q_proj",
                     settings={"trainable_token_indices": added})  # fmt: skip
    trained(model)
    ids = torch.tensor([[1, 97, 5, 100]])
    expected = model(input_ids=ids).logits
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(input_ids=ids).logits
    assert (expected - before).abs().max() > 0.01
    model.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    start = fresh.get_input_embeddings().weight.detach().clone()
    read = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(read(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    merged = merge_adapter(model)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    changed = (merged.get_input_embeddings().weight != start).any(1)
    assert changed.nonzero().flatten().tolist() == added


def test_whole_modules_beside_a_half_precision_base_are_trained_in_fp32(make_model: Any) -> None:
    expected = make_model(dtype="bfloat16")(input_ids=IDS).logits
    model = ours(make_model(dtype="bfloat16"), "whole-ends")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found = model(input_ids=IDS).logits
        torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.1)


def test_a_pattern_chooses_layers_by_their_whole_name(make_model: Any) -> None:
    model = ours(make_model(), "rslora", target_modules=r".*layers\.1\.self_attn\.[qv]_proj")
    names = {
        n.split("model.")[-1].split(".lora_")[0]
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    assert names == {"layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"}
    with pytest.raises(ModelError, match=r"nothing_\.\*"):
        ours(make_model(), "rslora", target_modules="nothing_.*")


def test_an_unknown_module_to_save_is_refused_with_the_nearest(make_model: Any) -> None:
    with pytest.raises(ModelError, match=r"modules_to_save.*embed_token;.*are embed_tokens"):
        add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules="q_proj",
                 settings={"modules_to_save": ["embed_token"]})  # fmt: skip


EVA = {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}


def texts(number: int = 20) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, 90, (6 + i % 5,), generator=generator).tolist() for i in range(number)]


def test_eva_starts_as_pefts_own_does_on_the_same_records(make_model: Any, tmp_path: Path) -> None:
    base = make_model("llama")
    start = base(input_ids=IDS).logits
    found = add_lora(base, r=2, alpha=4, dropout=0.0, target_modules="all-linear", settings=EVA,
                     texts=texts(16))  # fmt: skip
    torch.testing.assert_close(found(input_ids=IDS).logits, start)  # the base is what it was
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", **EVA
    )
    expected = get_peft_model(make_model("llama"), config)
    batches = []
    for some in (texts(16)[:8], texts(16)[8:]):
        width = max(map(len, some))
        rows = [[*one, *[0] * (width - len(one))] for one in some]
        masks = [[1] * len(one) + [0] * (width - len(one)) for one in some]
        batches.append({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)})
    initialize_lora_eva_weights(expected, batches, show_progress_bar=False)
    own = {n: p for n, p in found.named_parameters() if "lora_A" in n}
    theirs = {n: p for n, p in expected.named_parameters() if "lora_A" in n}
    assert own.keys() == theirs.keys()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter, theirs[name])
    assert len({len(p) for p in own.values()}) > 1  # layers have ranks of their own
    trained(found).save_pretrained(tmp_path / "adapter")
    read = PeftModel.from_pretrained(make_model("llama"), tmp_path / "adapter").eval()
    torch.testing.assert_close(
        read(input_ids=IDS).logits, found(input_ids=IDS).logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["corda", "lora_ga"])
def test_what_passes_take_out_of_the_base_is_saved_for_the_base_as_it_was(
    name: str, make_model: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    if name == "corda":
        pytest.importorskip("attr", reason="PEFT's CorDA imports attrs")
    start = make_model("llama")(input_ids=IDS).logits
    base = make_model("llama")
    before = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    found = add_lora(base, r=2, alpha=4, dropout=0.0, target_modules="all-linear",
                     settings={"init_lora_weights": name}, texts=texts())  # fmt: skip
    layer = base.model.layers[0].self_attn.q_proj
    torch.testing.assert_close(found(input_ids=IDS).logits, start, rtol=1e-4, atol=1e-4)
    assert (layer.get_base_layer().weight - before).abs().max() > 1e-3
    assert layer.lora_B["default"].weight.abs().max() > 0  # it does not start at no change
    trained(found)
    expected = found(input_ids=IDS).logits
    for merged in (False, True):
        folder = tmp_path / str(merged)
        save_model(found, AutoTokenizer.from_pretrained(tiny_model_dir), folder, merged=merged)
    read = PeftModel.from_pretrained(make_model("llama"), tmp_path / "False").eval()
    assert read.peft_config["default"].r == 4
    torch.testing.assert_close(read(input_ids=IDS).logits, expected, rtol=1e-3, atol=1e-3)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "True")
    torch.testing.assert_close(whole(input_ids=IDS).logits, expected, rtol=1e-3, atol=1e-3)
    folder = Path(str(found.start_folder))
    assert folder.is_dir()
    del found, base, layer
    gc.collect()
    assert not folder.exists()


def test_a_start_that_differs_by_more_than_signs_that_cancel_is_another() -> None:
    down, up = torch.rand(2, 3), torch.rand(4, 2)
    then = {"q.lora_A.weight": down, "q.lora_B.weight": up}
    flipped = torch.tensor([-1.0, 1.0])[:, None] * down
    both = {"q.lora_A.weight": flipped, "q.lora_B.weight": up * torch.tensor([-1.0, 1.0])}
    assert other_start(then, both) == ""
    assert other_start({}, then) == ""  # of a checkpoint that does not hold it
    assert "q.lora_A.weight" in other_start(then, {**then, "q.lora_A.weight": flipped})


def test_lora_ga_of_a_rank_that_a_layer_has_not_is_refused(make_model: Any) -> None:
    with pytest.raises(ModelError, match=r"directions of every layer.*set lora_r to \d+ or less"):
        add_lora(make_model("llama"), r=32, alpha=4, dropout=0.0, target_modules="all-linear",
                 settings={"init_lora_weights": "lora_ga"}, texts=texts(2))  # fmt: skip


def test_eva_on_too_few_tokens_is_refused(make_model: Any) -> None:
    with pytest.raises(ModelError, match=r"looks for 64 components.*the records have 13 tokens"):
        add_lora(make_model("llama"), r=32, alpha=4, dropout=0.0, target_modules="all-linear",
                 settings=EVA, texts=texts(2))  # fmt: skip
