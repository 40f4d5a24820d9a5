"""Gradient checkpointing comes on by itself only when memory asks for it, and changes nothing."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant.data.tokenise import TokenisedPair
from penchant.models import memory
from penchant.models.load import load_causal_model
from penchant.models.memory import activation_bytes, enable_checkpointing, training_bytes
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.training import prepare

PAIRS = [TokenisedPair([10 + i] * 20, [40 + i] * 12, [70 + i] * 16, f"row {i}") for i in range(16)]


@pytest.fixture
def scorer(tiny_model_dir: Path) -> Scorer:
    one = Scorer(load_causal_model(str(tiny_model_dir), dtype=torch.float32), 0)
    plan = plan_scoring(one, [pair.group() for pair in PAIRS[:2]], attention="auto", max_length=64)
    assert plan.packed
    return one


def saved_bytes(scorer: Scorer, pairs: list[TokenisedPair]) -> int:
    """What autograd keeps of one forward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in scorer.parameters()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that none is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        scorer(scorer.batch([pair.group() for pair in pairs]))
    return sum(size for pointer, (size, _) in kept.items() if pointer not in weights)


def test_activations_measured_on_one_pair_foretell_those_of_a_batch(scorer: Scorer) -> None:
    fixed, per_token = activation_bytes(scorer, PAIRS[0].group())
    tokens = sum(pair.group().num_tokens for pair in PAIRS)
    assert saved_bytes(scorer, PAIRS) == pytest.approx(fixed + per_token * tokens, rel=0.15)


def test_measuring_activations_leaves_none_of_them_behind(scorer: Scorer) -> None:
    def num_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    before = num_tensors()
    activation_bytes(scorer, PAIRS[0].group())
    assert num_tensors() == before


def test_activations_are_measured_without_changing_the_model(scorer: Scorer) -> None:
    scorer.train()
    before = torch.get_rng_state()
    activation_bytes(scorer, PAIRS[0].group())
    assert scorer.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in scorer.parameters())


def test_half_precision_copies_of_weights_are_counted_once_and_not_by_token(
    tiny_model_dir: Path, scorer: Scorer
) -> None:
    """A short record would else be charged for the model, and a long batch for it many times."""
    linear = sum(
        module.weight.numel()
        for name, module in scorer.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name  # it is walked in chunks
    )
    short = TokenisedPair([10], [40], [70, 71], "row 0").group()
    _, per_token = activation_bytes(scorer, short)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fixed, half_per_token = activation_bytes(scorer, short)
        kept = saved_bytes(scorer, PAIRS)
    assert fixed == pytest.approx(2 * linear, rel=0.05)
    assert 0.4 * per_token < half_per_token < per_token
    tokens = sum(pair.group().num_tokens for pair in PAIRS)
    assert kept == pytest.approx(fixed + half_per_token * tokens, rel=0.15)


def test_training_needs_the_longest_micro_batch_gradients_and_two_moments(scorer: Scorer) -> None:
    groups = [pair.group() for pair in PAIRS]
    longest = TokenisedPair([9] * 40, [8] * 30, [7] * 30, "long").group()
    fixed, per_token = activation_bytes(scorer, groups[0])
    trained = sum(p.numel() * 4 for p in scorer.parameters())
    expected = fixed + per_token * (100 + 3 * groups[0].num_tokens) + 3 * trained
    assert training_bytes(scorer, [*groups, longest], 4) == pytest.approx(expected)


@pytest.mark.parametrize("lora_r", [0, 4])
def test_checkpointing_is_wanted_exactly_when_a_batch_would_not_fit(
    tmp_path: Path, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, lora_r: int
) -> None:
    needed = []

    def measured(scorer: Scorer, *rest: Any) -> float:
        found = training_bytes(scorer, *rest)
        # A frozen copy is weighed too, where there will be one.
        needed.append(found + (0 if lora_r else sum(p.numel() * 4 for p in scorer.parameters())))
        return found

    monkeypatch.setattr(prepare, "training_bytes", measured)
    keys = {**tiny_keys, "lora_r": lora_r, "reference": "adapter" if lora_r else "copy"}
    penchant.train("dpo", output=tmp_path / "measured", max_steps=1, **keys)
    for share, wanted in ((0.99, True), (1.01, False)):
        available = needed[0] / memory.USABLE * share
        monkeypatch.setattr(memory, "memory_available_bytes", lambda _, a=available: a)
        output = tmp_path / str(share)
        penchant.train("dpo", output=output, max_steps=1, **keys)
        summary = json.loads((output / "summary.json").read_text())
        assert summary["gradient_checkpointing"] is wanted


def test_checkpointing_keeps_less_of_a_forward_pass(scorer: Scorer) -> None:
    scorer.train()
    before = saved_bytes(scorer, PAIRS)
    enable_checkpointing(scorer.causal_model)
    assert saved_bytes(scorer, PAIRS) < 0.7 * before


@pytest.mark.parametrize("lora_r", [0, 4])
def test_checkpointing_changes_no_number(
    tmp_path: Path, tiny_keys: dict[str, Any], lora_r: int
) -> None:
    found = {}
    for setting in ("on", "off"):
        output = tmp_path / setting
        penchant.train(
            "dpo", output=output, gradient_checkpointing=setting, lora_r=lora_r, **tiny_keys
        )
        records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        found[setting] = [(record["loss"], record["grad_norm"]) for record in records]
        summary = json.loads((output / "summary.json").read_text())
        assert summary["gradient_checkpointing"] is (setting == "on")
    for on, off in zip(found["on"], found["off"], strict=True):
        assert on == pytest.approx(off, abs=1e-6)


def test_run_turns_checkpointing_on_by_itself_where_memory_is_short(
    tmp_path: Path, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for available, wanted in ((10**5, True), (10**12, False)):
        monkeypatch.setattr(memory, "memory_available_bytes", lambda _, a=available: a)
        output = tmp_path / str(available)
        penchant.train("dpo", output=output, max_steps=1, **tiny_keys)
        summary = json.loads((output / "summary.json").read_text())
        assert summary["gradient_checkpointing"] is wanted
