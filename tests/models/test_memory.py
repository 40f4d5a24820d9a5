"""Gradient checkpointing comes on by itself only when memory asks for it, and changes nothing."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import penchant
from penchant.core.machine import USABLE, Room, find_room, memory_available_bytes
from penchant.data.tokenise import TokenisedPair
from penchant.models.footprint import Load, footprint
from penchant.models.load import load_causal_model
from penchant.models.lora import add_lora
from penchant.models.memory import (
    LATER_BYTES,
    activation_bytes,
    enable_checkpointing,
    measure_sizes,
)
from penchant.models.policy import PolicyScorer, make_value_head
from penchant.models.rough_sizes import measure_model, sizes_of
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.models.selfcheck import plan_scoring
from penchant.training import prepare, workload
from penchant.training.workload import spare_bytes

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


def test_activations_of_experts_are_estimated_as_they_are_measured(
    make_model: Any, tmp_path: Path
) -> None:
    """Their weights are no linear layers, and two of eight serve a token."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_local_experts": 8}
    model = make_model("mixtral", num_experts_per_tok=2, **sizes)
    model.config.save_pretrained(tmp_path)
    size = measure_model(str(tmp_path))
    # Of each of two layers: gate and up `[512, 64]`, down `[64, 256]`, for two experts.
    assert size.expert_width == 2 * 2 * (512 + 64 + 64 + 256)
    scorer = Scorer(model, 0)
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    _, measured = activation_bytes(scorer, PAIRS[0].group())
    choices = {"reference": False, "precision": "fp32", "device": "cpu"}
    estimated = sizes_of(size, lora_r=0, half_base=False, **choices).by_token
    assert estimated == pytest.approx(measured, rel=0.5)
    # PEFT adapts experts and routers of this family by itself, by a pattern of its own.
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        adapted = add_lora(model, r=3, alpha=6, dropout=0.0, target_modules="all-linear")
    trained = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    assert any(".experts." in name for name in trained)
    assert 3 * size.rank_one == sum(trained.values())


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


def test_sizes_are_those_of_all_models_that_are_trained(tiny_model_dir: Path) -> None:
    """A value model of its own is trained too: its weights, activations and layers count."""
    models = [load_causal_model(str(tiny_model_dir), dtype=torch.float32) for _ in range(2)]
    policy = PolicyScorer(
        models[0],
        0,
        value_head=make_value_head(models[0]),
        critic=Scorer(models[1], 0),
    )
    alone = PolicyScorer(models[0], 0)
    group, room = PAIRS[0].group(), Room(held=1e9, available=1e9, total=4e9)
    both, one = (
        measure_sizes(scorer, group, room, reference=5.0, rewards=7.0, teacher=3.0, half=False)
        for scorer in (policy, alone)
    )
    weights = sum(p.numel() * 4 for p in models[0].parameters())
    assert one.weights == one.trained == weights
    assert both.weights == 2 * weights + 4 * 33  # a value head of 32 inputs
    assert (both.num_layers, both.width) == (2 * one.num_layers, 2 * one.width)
    assert both.by_token > 1.5 * one.by_token
    assert one.process == 1e9 - weights - 15 + LATER_BYTES
    parts = footprint(one, Load(tokens=8, predicted=4)).parts
    assert (parts["reference"], parts["rewards"], parts["teacher"]) == (5.0, 7.0, 3.0)


def test_recurrent_model_keeps_nothing_for_each_token_it_samples() -> None:
    settings = MambaConfig(vocab_size=128, hidden_size=32, state_size=8, num_hidden_layers=2)
    one, group = Scorer(MambaForCausalLM(settings), 0), PAIRS[0].group()
    plan_scoring(one, [group], attention="auto", max_length=64)
    sizes = measure_sizes(one, group, Room(0, 2**30, 2**30), reference=0, rewards=0, half=False)
    assert sizes.cache_token == 0


@pytest.mark.parametrize("lora_r", [0, 4])
def test_checkpointing_is_wanted_exactly_when_a_batch_would_not_fit(
    tmp_path: Path, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, lora_r: int
) -> None:
    spare: list[float] = []

    def measured(*run: Any) -> float:
        spare.append(spare_bytes(*run))
        return spare[-1]

    monkeypatch.setattr(prepare, "spare_bytes", measured)
    room = Room(held=1e9, available=1e12, total=2e12)
    monkeypatch.setattr(workload, "find_room", lambda _: room)
    keys = {**tiny_keys, "lora_r": lora_r, "reference": "adapter" if lora_r else "copy"}
    penchant.train("dpo", output=tmp_path / "measured", max_steps=1, **keys)
    model = load_causal_model(str(keys["model"]), dtype=torch.float32)
    # A frozen copy is weighed too, where there will be one.
    copy = 0 if lora_r else sum(p.numel() * 4 for p in model.parameters())
    needed = USABLE * 1e12 - spare[0] + copy
    for share, wanted in ((0.99, True), (1.01, False)):
        room = Room(held=1e9, available=needed / USABLE * share, total=2e12)
        output = tmp_path / str(share)
        penchant.train("dpo", output=output, max_steps=1, **keys)
        summary = json.loads((output / "summary.json").read_text())
        assert summary["gradient_checkpointing"] is wanted


def test_what_the_gpus_allocator_keeps_can_be_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check frees its logits to the allocator; the driver goes on to call them used."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 25)
    assert memory_available_bytes(torch.device("cuda")) == 45


@pytest.mark.parametrize(
    ("launched", "share"),
    [({}, 100), ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 50), ({"WORLD_SIZE": "4"}, 25)],
    ids=str,
)
def test_processes_on_one_machine_share_its_main_memory(
    launched: dict[str, str], share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)  # as earlier tests leave it
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    memory = SimpleNamespace(available=100, total=200)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert find_room(torch.device("cpu")).available == share


def test_checkpointing_keeps_less_of_a_forward_pass(scorer: Scorer) -> None:
    scorer.train()
    before = saved_bytes(scorer, PAIRS)
    enable_checkpointing(scorer)
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
        room = Room(1e9, available, 2e12)
        monkeypatch.setattr(workload, "find_room", lambda _, room=room: room)
        output = tmp_path / str(available)
        penchant.train("dpo", output=output, max_steps=1, **tiny_keys)
        summary = json.loads((output / "summary.json").read_text())
        assert summary["gradient_checkpointing"] is wanted


def test_the_critic_of_a_value_model_of_its_own_is_checkpointed_too(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    from penchant.config.keys import load_config
    from penchant.training.accelerator import make_accelerator
    from penchant.training.inputs import read_inputs, read_run_data

    keys = {
        "model": str(tiny_keys["model"]),
        "data": "<list>",
        "output": tmp_path,
        "value_model": "copy",
        "gradient_checkpointing": "on",
        "reward": ["length:20"],
        "max_completion_length": 4,
        "max_length": 32,
        "batch_size": 16,
    }
    config = load_config("ppo", keys)
    accelerator = make_accelerator("fp32")
    data = read_run_data(config, [{"prompt": f"say {word}"} for word in "abcd"], None)
    scorer = prepare.prepare(config, accelerator, read_inputs(config, data)).scorer
    assert isinstance(scorer, PolicyScorer) and scorer.critic is not None
    assert scorer.causal_model.is_gradient_checkpointing
    assert scorer.critic.causal_model.is_gradient_checkpointing
