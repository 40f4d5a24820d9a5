"""Predicted memory and time: they add up, move the right way, refuse, and leave a run alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

import penchant
from penchant.commands.run import run_on
from penchant.config.keys import RunConfig, load_config
from penchant.core.machine import Room
from penchant.core.target import Machine
from penchant.data.tokenise import TokenisedPair
from penchant.guards.checks.gather import take_snapshot
from penchant.guards.estimate import times
from penchant.guards.estimate.estimate import RunEstimate, estimate_run, estimate_unloaded
from penchant.guards.estimate.sampling_times import (
    expected_length,
    longest_answer,
    probe_sampling,
)
from penchant.guards.estimate.times import fitted
from penchant.models.lora import add_lora
from penchant.models.rough_sizes import (
    ModelSize,
    adapter_weights,
    empty_model,
    measure_model,
    sizes_of,
)
from penchant.training import workload
from penchant.training.accelerator import make_accelerator
from penchant.training.folder import open_directory
from penchant.training.inputs import read_inputs, read_run_data
from penchant.training.prepare import prepare
from penchant.training.setup import Setup
from penchant.training.workload import Workload, count_work, spare_bytes

PROMPTS = [{"prompt": f"say {word}"} for word in "abcdefghij"]
SAMPLING = {
    "batch_size": 8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 6,
    "max_length": 64,
    "max_steps": 4,
    "reward": ["length:20"],
}


class Prepared:
    def __init__(self, method: str, model: Path, data: Any, **keys: Any) -> None:
        self.config: RunConfig = load_config(
            method, {"model": str(model), "data": "<data>", "eval_samples": 0, **keys}
        )
        self.accelerator = make_accelerator("fp32")
        set_seed(0)
        self.run_data = read_run_data(self.config, data, None)
        self.inputs = read_inputs(self.config, self.run_data)
        self.setup: Setup = prepare(self.config, self.accelerator, self.inputs)

    def estimate(self, *, timed: bool = False, **changes: Any) -> RunEstimate:
        config = self.config.model_copy(update=changes)
        return estimate_run(config, self.setup, self.accelerator, timed=timed)


@pytest.fixture(scope="module")
def full(tiny_model_dir: Path, training_file: Path) -> Prepared:
    return Prepared(
        "dpo", tiny_model_dir, str(training_file), lora_r=0, reference="copy", max_length=128
    )


def size(**changes: Any) -> ModelSize:
    values = {
        "num_parameters": 1_000_000_000,
        "num_layer_parameters": 900_000_000,
        "width": 1_000_000,
        "hidden": 2048,
        "num_layers": 16,
        "vocabulary": 32_000,
        "context": None,
        "scores": False,
    }
    return ModelSize(**{**values, **changes})


ON_CPU = Machine("cpu", 0, True, "fp32")


def unloaded(memory: float, machine: Machine = ON_CPU, **keys: Any) -> RunEstimate:
    """Of a run on pairs that are as long as the configuration lets them be."""
    config = load_config("dpo", {"model": "m", "data": "d", "max_steps": 2, **keys})
    prompt = min(config.prompt_budget, config.max_length - 1)
    answer = [2] * (config.max_length - prompt)
    pairs = [TokenisedPair([1] * prompt, answer, answer, f"row {i}") for i in range(8)]
    machine = replace(machine, memory_bytes=int(memory))
    return estimate_unloaded(config, size(), machine, pairs)


def test_parts_add_up_to_the_peak_and_to_what_is_held(full: Prepared) -> None:
    found = full.estimate()
    trained = sum(p.numel() * 4 for p in full.setup.scorer.parameters())
    assert found.peak_bytes == sum(found.parts.values()) == max(found.phases.values())
    assert found.parts["weights"] == found.parts["reference"] == trained
    assert found.parts["optimizer"] == 2 * trained
    assert found.seconds is None


def test_first_step_has_no_moments_yet(full: Prepared) -> None:
    one = full.estimate(max_steps=1).phases["training"]
    two = full.estimate(max_steps=2).phases["training"]
    trained = sum(p.numel() * 4 for p in full.setup.scorer.parameters())
    assert two - one == pytest.approx(2 * trained, rel=0.5)


def test_larger_micro_batches_take_more_and_checkpointing_less() -> None:
    def needed(**keys: Any) -> float:
        return unloaded(64e9, **keys).needed_bytes

    for lora_r in (0, 16):
        sizes = [needed(lora_r=lora_r, per_device_train_batch_size=n) for n in (1, 2, 4, 8)]
        assert sizes == sorted(set(sizes))
        sizes = [needed(lora_r=lora_r, max_length=n) for n in (128, 256, 512, 1024)]
        assert sizes == sorted(set(sizes))
        on, off = (needed(lora_r=lora_r, gradient_checkpointing=k) for k in ("on", "off"))
        assert on < off


def test_micro_batches_of_the_data_are_counted_as_they_are_laid_out(full: Prepared) -> None:
    small = full.estimate(per_device_train_batch_size=1).phases["training"]
    large = full.estimate(per_device_train_batch_size=8).phases["training"]
    assert large > small


def test_a_token_budget_bounds_the_longest_pass_that_is_counted(full: Prepared) -> None:
    def counted(**changes: Any) -> Workload:
        config = full.config.model_copy(update=changes)
        return count_work(config, full.setup.train_set, layout=full.setup.scorer.plan.layout)

    fixed = counted(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    limit = fixed.longest // 2
    keys = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    filled = counted(max_tokens_per_batch=limit, **keys)
    assert filled.longest <= limit < fixed.longest
    assert filled.num_steps == fixed.num_steps and filled.num_tokens == fixed.num_tokens
    loads = [work.load(full.config, checkpointing=False) for work in (fixed, filled)]
    assert [load.accumulates for load in loads] == [False, True]
    alone = counted(max_tokens_per_batch=1, **keys)
    assert alone.longest == max(e.group().num_tokens for e in full.setup.train_set)


def test_a_token_budget_bounds_the_passes_over_sampled_answers(tiny_model_dir: Path) -> None:
    run = Prepared("grpo", tiny_model_dir, PROMPTS, lora_r=4, **SAMPLING, num_generations=4)

    def counted(limit: int | None) -> Workload:
        config = run.config.model_copy(update={"max_tokens_per_batch": limit})
        return count_work(config, run.setup.train_set)

    fixed, longest = counted(None), run.config.prompt_budget + 1
    filled = counted(max(longest, fixed.longest // 2))
    assert filled.longest <= max(longest, fixed.longest // 2)
    assert filled.num_tokens <= fixed.num_tokens + filled.num_passes
    assert counted(1).longest == max(
        len(p.prompt) + run.config.options.max_completion_length for p in run.setup.train_set
    )


@pytest.mark.parametrize(
    ("keys", "num_processes", "answers", "num_counted"),
    [
        ({"gradient_accumulation_steps": 4}, 1, [2, 2], 1),  # 4 of 8 answers are the best or worst
        ({"gradient_accumulation_steps": 1}, 1, [2, 2], 2),
        ({"gradient_accumulation_steps": 2}, 2, [2], 1),
    ],
)
def test_passes_are_counted_of_the_answers_that_are_trained_on(
    tiny_model_dir: Path,
    keys: dict[str, Any],
    num_processes: int,
    answers: list[int],
    num_counted: int,
) -> None:
    config = load_config(
        "online_dpo",
        {"model": str(tiny_model_dir), "data": "<data>", **SAMPLING, "num_generations": 4, **keys},
    )
    prompts = read_inputs(config, read_run_data(config, PROMPTS, None)).train_set
    work = count_work(config, prompts, layout="shared", num_processes=num_processes)
    longest = config.options.max_completion_length
    mean_prompt = sum(len(one.prompt) for one in prompts) / len(prompts)
    assert work.passes == [round(count * (longest + mean_prompt / 2)) for count in answers]
    assert work.num_counted == num_counted
    assert work.predicted == max(answers) * longest


def test_vllm_takes_its_share_of_the_memory_and_the_run_keeps_no_cache(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Prepared("grpo", tiny_model_dir, PROMPTS, lora_r=4, **SAMPLING, num_generations=4)
    room = Room(held=1e9, available=1e12, total=2e12)
    monkeypatch.setattr(workload, "find_room", lambda _: room)
    changed = {"generation": "vllm", "vllm_gpu_memory_utilization": 0.25}
    options = run.config.options.model_copy(update=changed)
    vllm = run.config.model_copy(update={"options": options})
    spare = [spare_bytes(one, run.setup, run.accelerator) for one in (run.config, vllm)]
    assert spare[0] - spare[1] == pytest.approx(0.25 * 2e12, rel=1e-3)
    assert "sampling" not in run.estimate(options=options).phases
    machine = Machine("cpu", 4 << 30, True, "fp32")
    limits = [
        estimate_unloaded(one, size(), machine, run.setup.train_set).limit_bytes
        for one in (run.config, vllm)
    ]
    assert limits[1] == pytest.approx(0.75 * limits[0])


def test_what_cannot_fit_is_refused_by_name_with_keys_that_would() -> None:
    found = unloaded(12e9, lora_r=0, max_length=512)
    assert not found.fits
    refusal = found.finding()
    assert refusal is not None
    assert (refusal.id, refusal.severity) == ("memory", "error")
    assert found.proposals[0].fits
    for key in found.proposals[0].keys:
        assert key in refusal.remedy
    assert refusal.evidence["parts"]["weights"] == 4_000_000_000


def test_every_proposal_is_a_valid_configuration_that_takes_less() -> None:
    keys: dict[str, Any] = {"lora_r": 0, "max_length": 512, "reference": "copy"}
    found = unloaded(12e9, **keys)
    assert len(found.proposals) >= 4
    for proposal in found.proposals:
        assert proposal.peak_bytes < found.needed_bytes
        again = unloaded(12e9, **{**keys, **proposal.keys})
        # What is proposed is what would then be predicted, but for the roughness of activations.
        assert again.needed_bytes == pytest.approx(proposal.peak_bytes, rel=0.15)


def test_on_a_gpu_all_weights_in_bf16_are_proposed_and_take_what_is_predicted() -> None:
    gpu = Machine("cuda", 0, True, "bf16")
    keys: dict[str, Any] = {"lora_r": 0, "max_length": 256, "gradient_checkpointing": "on"}
    keys |= {"per_device_train_batch_size": 1, "precision": "bf16"}
    found = unloaded(9e9, gpu, **keys)
    halves = [one for one in found.proposals if one.keys.get("dtype") == "bf16"]
    assert halves and all("lora_r" not in one.keys for one in halves)
    for proposal in halves:
        again = unloaded(9e9, gpu, **{**keys, **proposal.keys})
        assert again.needed_bytes == pytest.approx(proposal.peak_bytes, rel=0.15)
    others = unloaded(9e9, gpu, **keys, optim="sgd", learning_rate=1e-3).proposals
    assert not any(one.keys.get("dtype") == "bf16" for one in others)


def test_no_remedy_is_proposed_that_processes_that_divide_weights_refuse(full: Prepared) -> None:
    def proposed(config: RunConfig, **processes: int) -> set[tuple[str, Any]]:
        found = estimate_run(config, full.setup, full.accelerator, timed=False, **processes)
        return {pair for one in found.proposals for pair in one.keys.items()}

    refused = {("optim", "adamw_8bit"), ("quantization", "4bit")}
    assert refused <= proposed(full.config)
    sharded = full.config.model_copy(update={"sharding": "full"})
    kept = proposed(sharded, num_processes=2, parts=2)
    assert not refused & kept
    assert {("gradient_checkpointing", "on"), ("lora_r", 16)} <= kept


EXPERTS = "mlp.experts.gate_up_proj,mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("qwen3_moe", {"target_parameters": EXPERTS}),
        ("llama", {"target_modules": "q_proj,v_proj"}),
        ("llama", {"settings": {"rank_pattern": {"q_proj": 4}, "init_lora_weights": "pissa"}}),
        ("llama", {"settings": {"modules_to_save": ["lm_head"]}}),
    ],
)
def test_an_adapter_is_counted_before_loading_as_it_will_be_trained(
    family: str, shape: dict[str, Any], make_model: Any, tmp_path: Path
) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path)
    keys = {"target_modules": "all-linear", **shape}
    counted = adapter_weights(empty_model(str(tmp_path)), r=2, **keys)
    adapted = add_lora(model, r=2, alpha=4, dropout=0.0, **keys)
    assert counted == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    rough: Any = {"half_base": False, "reference": False, "precision": "fp32", "device": "cpu"}
    sizes = sizes_of(measure_model(str(tmp_path)), lora_r=2, adapter_weights=counted, **rough)
    assert sizes.trained == 4 * counted


def test_a_model_beyond_the_machine_is_impossible_and_a_small_one_is_not_reported() -> None:
    assert unloaded(4e9, lora_r=0).impossible
    fine = unloaded(500e9, lora_r=0)
    assert fine.fits and not fine.impossible
    assert fine.finding() is None


def test_the_probe_leaves_weights_gradients_modes_and_random_numbers_alone(
    tiny_model_dir: Path, training_file: Path
) -> None:
    keys = {"lora_r": 4, "lora_dropout": 0.1, "max_length": 128}
    run = Prepared("dpo", tiny_model_dir, str(training_file), **keys)
    weights = {n: p.detach().clone() for n, p in run.setup.scorer.named_parameters()}
    state, training = torch.get_rng_state(), run.setup.scorer.training
    found = run.estimate(timed=True)
    assert found.seconds is not None and found.seconds > 0
    assert set(found.times) == {"passes", "warm-up", "updates"}
    assert torch.equal(torch.get_rng_state(), state)
    assert run.setup.scorer.training == training
    for name, parameter in run.setup.scorer.named_parameters():
        assert torch.equal(parameter, weights[name]), name
        assert parameter.grad is None, name


def test_a_run_that_was_estimated_is_bit_for_bit_the_run_that_was_not(
    tiny_model_dir: Path, training_file: Path, tmp_path: Path
) -> None:
    keys = {"lora_r": 4, "lora_dropout": 0.1, "max_length": 128, "max_steps": 2}
    trained = []
    for name in ("with", "without"):
        output = tmp_path / name
        run = Prepared("dpo", tiny_model_dir, str(training_file), output=output, **keys)
        if name == "with":
            run.estimate(timed=True)
        directory = open_directory(run.config, run.accelerator, run.run_data)
        snapshot = take_snapshot(run.config, run.inputs)
        run_on(run.config, run.accelerator, directory, run.setup, snapshot)
        trained.append(load_file(output / "model" / "adapter_model.safetensors"))
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())
    assert any(tensor.any() for name, tensor in trained[0].items() if "lora_B" in name)


@pytest.mark.parametrize("method", ["ppo", "grpo", "online_dpo"])
def test_sampling_methods_are_timed_without_touching_rewards_or_weights(
    tiny_model_dir: Path, method: str
) -> None:
    more = {} if method == "ppo" else {"num_generations": 4}
    run = Prepared(method, tiny_model_dir, PROMPTS, lora_r=4, **SAMPLING, **more)
    assert run.setup.collector is not None
    weights = {n: p.detach().clone() for n, p in run.setup.scorer.named_parameters()}
    rewards, state = run.setup.collector.rewards.state_dict(), torch.get_rng_state()
    found = run.estimate(timed=True)
    trained = run.config.options.trained_generations
    rollouts = probe_sampling(run.config, run.setup, run.accelerator).rollouts
    assert set(Counter(one.number for one in rollouts).values()) == {trained}
    assert set(found.times) == {"passes", "warm-up", "updates", "generation", "rewards", "scoring"}
    assert found.phases["sampling"] > 0
    assert run.setup.collector.rewards.state_dict() == rewards
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in run.setup.scorer.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_held_out_prompts_of_one_process_take_as_long_as_those_of_several(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered side by side, until there are more than are drawn at once."""
    run = Prepared("grpo", tiny_model_dir, PROMPTS, lora_r=4, **SAMPLING, num_generations=4)
    run.setup.eval_set = run.setup.train_set[:8]
    probed = probe_sampling(run.config, run.setup, run.accelerator)
    known = replace(probed, prefill=1.0, decode=1.0, reward=0.0, scored=0.0, ending=0.0)
    monkeypatch.setattr(times, "probe_sampling", lambda *_: known)

    def evaluation(num_processes: int, at_once: int) -> float:
        options = run.config.options.model_copy(update={"generation_batch_size": at_once})
        config = run.config.model_copy(update={"options": options, "eval_on_start": False})
        found = estimate_run(config, run.setup, run.accelerator, num_processes=num_processes)
        return found.evaluation_seconds

    batch = 1.0 + SAMPLING["max_completion_length"]
    assert [evaluation(n, 32) for n in (1, 2, 4)] == [batch] * 3
    assert [evaluation(n, 4) for n in (1, 2, 4)] == [2 * batch, batch, batch]


def test_twice_the_steps_take_twice_the_time(full: Prepared) -> None:

    from penchant.guards.estimate.times import Line

    def total(steps: int) -> float:
        config = full.config.model_copy(update={"max_steps": steps})
        return Line(0.1, 0.01).total(count_work(config, full.setup.train_set))

    # Whole epochs, so that both visit the same records: 24 in steps of 16.
    assert total(4) == pytest.approx(2 * total(2))


def test_a_line_is_fitted_through_passes_and_never_falls() -> None:
    assert fitted([(100, 2.0), (200, 3.0)]).by_token == pytest.approx(0.01)
    assert fitted([(100, 2.0), (200, 3.0)]).fixed == pytest.approx(1.0)
    assert fitted([(100, 2.0), (200, 1.0)]).by_token == pytest.approx(0.01)  # noise: 3 s by 300
    assert fitted([(100, 1.0), (200, 3.0)]).fixed == 0


def test_lengths_of_answers_that_end_by_chance() -> None:
    assert expected_length(0.0, 24) == 24
    assert expected_length(0.5, 2) == pytest.approx(1.5)  # 1 + 0.5
    assert longest_answer(0.0, 24, 8) == 24
    assert longest_answer(0.5, 2, 1) == pytest.approx(1.5)
    assert longest_answer(0.5, 2, 2) == pytest.approx(1.75)  # 1 + (1 - 0.25)


def test_loading_that_took_more_than_training_is_the_peak(
    full: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(1e9, 1e12, 2e12, peak=9e12)
    monkeypatch.setattr(workload, "find_room", lambda _: room)
    found = full.estimate()
    assert found.peak_bytes == pytest.approx(9e12)
    assert found.parts["loading"] > 8e12
    assert found.fits, "it is over"


def test_training_check_and_advise_agree_on_the_memory_of_one_run(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training decides by is what `check` shows, and `advise` says what `check` would."""
    rows = [{"prompt": "p " * 20, "chosen": "c " * 9, "rejected": "r " * 9} for _ in range(12)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    advice = penchant.advise(data=file, model=tiny_model_dir, memory="8GiB")
    keys = {name: setting.value for name, setting in advice.settings.items()}
    keys.pop("train_fraction", None)
    method = advice.best.method
    room = Room(held=1e9, available=1e12, total=2e12)
    monkeypatch.setattr(workload, "find_room", lambda _: room)
    run = Prepared(method, tiny_model_dir, str(file), **keys)

    shown = run.estimate()
    decided = room.limit - spare_bytes(run.config, run.setup, run.accelerator)
    assert decided == shown.needed_bytes

    size = measure_model(str(tiny_model_dir))
    machine = Machine("cpu", 8 << 30, True, "fp32")
    unloaded = estimate_unloaded(run.config, size, machine, run.setup.train_set)
    assert advice.best.plan.memory.peak == unloaded.needed_bytes
    # The configuration alone knows weights, gradients and moments; activations roughly.
    for part in ("weights", "gradients", "optimizer", "reference"):
        assert unloaded.parts[part] == shown.parts[part]
    assert unloaded.parts["activations"] == pytest.approx(shown.parts["activations"], rel=0.5)
