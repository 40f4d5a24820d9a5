"""Bases in codes: the same under every layout and mode, counted whole, and numbers again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from penchant.core.errors import ModelError
from penchant.models.load import load_causal_model
from penchant.models.lora import add_lora
from penchant.models.memory import weight_bytes
from penchant.models.merging import merge_adapter
from penchant.models.quantised import (
    PACKAGES,
    Quantization,
    prepare_quantised,
    require_packages,
    saved_method,
)
from penchant.models.rough_sizes import measure_model
from penchant.models.score_model import load_score_model
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.models.size import layer_shapes

IDS = torch.tensor([[1, 5, 6, 7], [8, 9, 10, 11]])
FP32 = torch.float32


def quantised(folder: Path, bits: int, dtype: torch.dtype = FP32, load: Any = load_causal_model):
    model = load(str(folder), dtype=dtype, quantization=Quantization(bits, FP32))
    prepare_quantised(model, FP32)
    return model


def adapted(model: Any) -> Any:
    model = add_lora(model, r=3, alpha=6.0, dropout=0.0, target_modules="all-linear")
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.data.copy_(0.2 * noise)
    return model


def numbers(layer: Any) -> torch.Tensor:
    if hasattr(layer.weight, "quant_state"):
        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    return int8_vectorwise_dequant(layer.weight.data, scales)


def in_numbers(folder: Path, model: Any) -> Any:
    """A plain model with the weights that the codes of `model` stand for."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=FP32)
    for (_, ours), (_, theirs) in zip(plain.named_modules(), model.named_modules(), strict=True):
        if type(ours) is nn.Linear and type(theirs) is not nn.Linear:
            ours.weight.data = numbers(theirs).float()
    return plain


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_multiply_with_what_their_codes_stand_for_in_either_mode(
    bits: int, tiny_model_dir: Path
) -> None:
    model = quantised(tiny_model_dir, bits)
    expected = in_numbers(tiny_model_dir, model)(input_ids=IDS).logits
    original = AutoModelForCausalLM.from_pretrained(tiny_model_dir)(input_ids=IDS).logits
    assert (expected - original).abs().max() > 1e-4
    for training in (False, True):
        found = model.train(training)(input_ids=IDS).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_of_an_adapter_are_those_on_the_same_weights_as_numbers(
    bits: int, tiny_model_dir: Path
) -> None:
    ours = adapted(quantised(tiny_model_dir, bits)).train()
    theirs = adapted(in_numbers(tiny_model_dir, quantised(tiny_model_dir, bits)))
    for model in (ours, theirs):
        model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert set(found) == set(expected) and len(found) == 28
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_rows_agree_with_a_plain_forward(
    bits: int, tiny_model_dir: Path, groups: Any
) -> None:
    scorer = Scorer(adapted(quantised(tiny_model_dir, bits)), 0)
    plan = plan_scoring(scorer, groups, attention="sdpa", max_length=64)
    assert plan.packed and plan.fused_head and not plan.reason


def test_all_but_the_codes_is_in_fp32_as_peft_prepares_it(tiny_model_dir: Path) -> None:
    ours = quantised(tiny_model_dir, 4, torch.bfloat16)
    theirs = load_causal_model(
        str(tiny_model_dir), dtype=torch.bfloat16, quantization=Quantization(4, FP32)
    )
    peft.prepare_model_for_kbit_training(theirs, use_gradient_checkpointing=False)
    expected = {name: (p.dtype, p.requires_grad) for name, p in theirs.named_parameters()}
    assert {name: (p.dtype, p.requires_grad) for name, p in ours.named_parameters()} == expected
    assert ours.lm_head.weight.dtype == FP32


@pytest.mark.parametrize(("bits", "bytes_each"), [(4, 0.5 + 1 / 64 + 4 / 64 / 256), (8, 1.0)])
def test_bytes_are_those_of_codes_and_scales(
    bits: int, bytes_each: float, tiny_model_dir: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    matrices = sum(a * b for a, b in layer_shapes(plain))
    model = quantised(tiny_model_dir, bits)
    assert list(layer_shapes(model)) == list(layer_shapes(plain))
    others = 4 * (plain.num_parameters() - matrices)
    # Each layer has tables of its own and scales of few rows, which count here and not in a model.
    tables = 14 * (16 + 256 + 4) * 4 if bits == 4 else 4 * sum(a for a, _ in layer_shapes(plain))
    assert weight_bytes(model) == pytest.approx(
        others + matrices * bytes_each, abs=tables + 14 * 64
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_merging_adds_the_adapter_to_numbers_and_saves_a_plain_model(
    bits: int, tiny_model_dir: Path, tmp_path: Path, caplog: Any
) -> None:
    model = adapted(quantised(tiny_model_dir, bits)).eval()
    expected = model(input_ids=IDS).logits
    caplog.set_level("INFO", logger="penchant")
    merged = merge_adapter(model, IDS.tolist(), torch.bfloat16)
    assert "log-probs differ from the adapter's by" in caplog.text
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    merged.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=FP32)
    torch.testing.assert_close(saved(input_ids=IDS).logits, expected, rtol=0.05, atol=0.02)
    # The policy goes on as it was.
    torch.testing.assert_close(model(input_ids=IDS).logits, expected)


def test_a_reward_model_keeps_its_head_in_numbers(tiny_model_dir: Path) -> None:
    model: Any = quantised(tiny_model_dir, 4, load=load_score_model)
    assert type(model.score) is nn.Linear and model.score.weight.dtype == FP32
    assert type(model.model.layers[0].mlp.up_proj) is not nn.Linear


def test_an_adapter_keeps_a_base_in_codes_and_is_not_merged_into_it(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = adapted(quantised(tiny_model_dir, 4)).eval()
    model.save_pretrained(tmp_path)
    how = Quantization(4, FP32)
    kept = load_causal_model(str(tmp_path), dtype=FP32, keep_adapter=True, quantization=how)
    torch.testing.assert_close(kept(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with pytest.raises(ModelError, match="is an adapter: merge it first"):
        load_causal_model(str(tmp_path), dtype=FP32, quantization=how)


def test_a_checkpoint_that_was_saved_in_codes_is_known_by_its_settings(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    quantised(tiny_model_dir, 4).save_pretrained(tmp_path)
    loaded: Any = load_causal_model(str(tmp_path), dtype=FP32)
    assert saved_method(loaded.config) == "bitsandbytes"
    size = measure_model(str(tmp_path))
    assert size.quantization == "4bit" and measure_model(str(tiny_model_dir)).quantization == "none"
    assert size.num_parameters == measure_model(str(tiny_model_dir)).num_parameters


def test_methods_are_read_from_settings_of_every_age() -> None:
    for found, expected in (
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        (BitsAndBytesConfig(load_in_4bit=True), "bitsandbytes"),
        (None, None),
    ):
        assert saved_method(SimpleNamespace(quantization_config=found)) == expected
    assert saved_method(SimpleNamespace()) is None


def test_a_missing_package_is_named(monkeypatch: Any) -> None:
    there = importlib.util.find_spec
    gone = {module for packages in PACKAGES.values() for module, _ in packages}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in gone else there(name)
    )
    for method, package in (
        ("bitsandbytes", r"penchant\[quantization\]"),
        ("gptq", "pip install optimum"),
        ("awq", "pip install gptqmodel"),
        ("compressed-tensors", "pip install compressed-tensors"),
    ):
        with pytest.raises(ModelError, match=f"m is quantised by {method}.*{package}"):
            require_packages(method, "m")
