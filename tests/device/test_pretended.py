"""Whole runs on a pretended CUDA device: no tensor of another device, and few waits for this one.

It says nothing of kernels, speed or memory: that needs a GPU (`bench/gpu.py`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.methods import METHODS

HERE = Path(__file__).parent
Runs = Callable[[dict[str, dict[str, Any]]], dict[str, Any]]


@pytest.fixture(scope="session")
def on_device(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a function that carries out runs in a process that has the device."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the stand-in for a device")
    spec = importlib.util.spec_from_file_location("pretended", HERE / "pretended.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("device")
    library = module.build(folder)

    def carry_out(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        wanted, found = folder / "runs.json", folder / "found.json"
        wanted.write_text(json.dumps(runs), "utf-8")
        command = [sys.executable, str(HERE / "run.py"), str(library), str(wanted), str(found)]
        source = str(HERE.parents[1] / "src")
        path = os.pathsep.join([source, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        results: dict[str, Any] = json.loads(found.read_text("utf-8"))
        return results

    return carry_out


@pytest.fixture(scope="session")
def keys(tiny_keys: dict[str, Any], held_out_file: Path) -> dict[str, Any]:
    """Return the keys of a run of two steps of two micro-batches, and an evaluation."""
    two = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
    return {**tiny_keys, **two, "eval_data": str(held_out_file), "warmup_ratio": 0.0}


ONLINE = {
    **{"reward": "length:5", "batch_size": 4, "max_completion_length": 8},
    **{"max_prompt_length": 32, "generation": "cached"},
}


def named(runs: dict[str, dict[str, Any]], keys: dict[str, Any], folder: Path) -> Any:
    """Runs with all their keys, each in a folder of its own unless it names one."""
    return {name: {"output": str(folder / name), **keys, **own} for name, own in runs.items()}


def parts(result: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The counts of a run's steps, or of its collections."""
    assert result["error"] is None, result["error"]
    assert not any(one["mismatches"] for one in result["parts"])
    return [one for one in result["parts"] if one["part"] == part]


def waits(one: dict[str, Any]) -> int:
    return sum(one["waits"].values())


@pytest.fixture(scope="session")
def few(on_device: Runs, keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what a run of DPO and one of PPO did on the device, in one process."""
    runs = {"dpo": {"method": "dpo"}, "ppo": {"method": "ppo", "precision": "fp32", **ONLINE}}
    return on_device(named(runs, keys, tmp_path_factory.mktemp("few")))


def test_stand_in_refuses_two_devices_and_counts_what_waits(few: Any) -> None:
    found = few["stand-in"]
    assert (found.pop("device"), found.pop("sum")) == ("cuda:0", 4.0)
    assert "same device" in found.pop("two devices")
    assert "indices should be" in found.pop("a CPU tensor indexed by the device's")
    assert "cuda:0" in found.pop("numpy")
    free = {name for name, number in found.items() if number == 0}
    assert free == {"pinned", "ones", "product"}
    assert {found[name] for name in found.keys() - free} == {1}


def test_step_of_dpo_looks_once_at_what_its_passes_found(few: Any) -> None:
    steps = parts(few["dpo"], "step")
    assert [waits(step) for step in steps] == [1, 1], [step["waits"] for step in steps]
    assert 0 < steps[-1]["metrics"]["loss"] < 0.7


def test_ppo_looks_once_a_step_and_once_for_eight_tokens_that_it_samples(few: Any) -> None:
    steps, collections = parts(few["ppo"], "step"), parts(few["ppo"], "collect")
    assert [waits(step) for step in steps] == [1, 1], [step["waits"] for step in steps]
    sampled = [one["waits"] for one in collections]
    reads = [n for one in sampled for place, n in one.items() if "rows.py" in place]
    assert reads == [1] * len(collections), sampled  # answers of at most eight tokens
    assert max(map(waits, collections)) <= 8, sampled
    assert steps[0]["metrics"]["logprob/sampling_difference_max"] < 1e-5


# Waits of a step of two micro-batches that are not the one look at what came out of its passes:
# how often equal margins occur decides how often AOT compares them.
MORE_WAITS = {"aot": 2, "aot unpaired": 4, "plain": 8}
HELD = {"lora_r": 0}
MATRIX: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    **{f"dpo {p}": {"method": "dpo", "precision": p} for p in ("fp32", "fp16")},
    **{f"ppo {p}": {"method": "ppo", "precision": p} for p in ("fp32", "fp16")},
    **{f"dpo {r}": {"method": "dpo", "reference": r} for r in ("copy", "cache")},
    **{f"{m} full": {"method": m, **HELD} for m in ("dpo", "kto", "reward", "grpo")},
    "another reference": {"method": "dpo", "reference_model": "model"},
    "moving reference": {"method": "dpo", "sync_ref_model": True, "ref_model_sync_steps": 1},
    "critic": {"method": "ppo", "value_model": "copy", **HELD},
    "top_k": {"method": "grpo", "top_k": 40, "top_p": 0.9, "reward": "regex:[ae]"},
    **{f"{m} static": {"method": m, "generation": "static"} for m in ("ppo", "grpo")},
    # Continuous batching draws in a thread of its own, in which nothing pretends: auto goes on.
    "grpo auto": {"method": "grpo", "generation": "auto"},
    "whole answers": {"method": "kto", "loss_type": "apo_zero_unpaired"},
    "aot unpaired": {"method": "aot", "paired": False},
    "weighting": {"method": "dpo", "use_weighting": True},
    "tails": {"method": "dpo", "ld_alpha": 0.3, "rpo_alpha": 0.5},
    "plain": {"method": "dpo", "attention": "plain"},
    "by tokens": {"method": "dpo", "max_tokens_per_batch": 128},
    "checkpointing": {"method": "dpo", "gradient_checkpointing": "on"},
    "evaluated": {"method": "dpo", "eval_steps": 1, "eval_on_start": True, "save_steps": 1},
    "monitored": {"method": "dpo", "monitor_prompts": 2, "monitor_steps": 1, "merge": True},
    **{f"{method} saved": {"method": method, "save_steps": 2} for method in ("dpo", "ppo")},
    "two epochs": {"method": "dpo", "max_steps": None, "num_train_epochs": 2},
}
# Keys of these runs that not every method that samples has.
SOME_METHODS = ("reward", "num_generations")
# Runs that go on from the folder of another one.
RESUMED = {"dpo saved": "dpo resumed", "ppo saved": "ppo resumed"}


@pytest.fixture(scope="session")
def matrix(on_device: Runs, keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what every run of the matrix did on the device, and two that go on from theirs."""
    runs = {}
    for name, own in MATRIX.items():
        method = METHODS[own["method"]]
        more = ONLINE if method.samples else {}
        if method.samples and own["method"] != "ppo":
            more = {**more, "num_generations": 2, "learning_rate": 1e-4}
        if method.data == "labels":
            more = {"unpair": True}
        known = method.options.model_fields
        more = {k: v for k, v in more.items() if k in known or k not in SOME_METHODS}
        if "teacher_model" in known:
            more["teacher_model"] = keys["model"]
        runs[name] = {**more, **own}
        if "reference_model" in own:
            runs[name]["reference_model"] = keys["model"]
    folder = tmp_path_factory.mktemp("matrix")
    every = named(runs, keys, folder)
    for first, name in RESUMED.items():
        every[name] = {**every[first], "max_steps": 4, "resume": True}
    return on_device(every)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MATRIX, *RESUMED.values()])
def test_run_stays_on_the_device_and_looks_once_a_step(matrix: Any, name: str) -> None:
    steps = parts(matrix[name], "step")
    most = 1 + MORE_WAITS.get(name, 0)
    assert steps
    assert max(map(waits, steps)) <= most, [step["waits"] for step in steps]
    assert all(step["metrics"]["loss"] == step["metrics"]["loss"] for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize("first", RESUMED)
def test_run_on_the_device_goes_on_from_its_checkpoint(matrix: Any, first: str) -> None:
    steps = parts(matrix[first], "step"), parts(matrix[RESUMED[first]], "step")
    assert [len(some) for some in steps] == [2, 2]


@pytest.mark.slow
def test_losses_on_the_device_are_those_of_the_cpu(
    matrix: Any, keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("dpo", **{**keys, "output": tmp_path / "run", "precision": "fp32"})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    expected = [record for record in map(json.loads, lines) if "loss" in record]
    for step, record in zip(parts(matrix["dpo fp32"], "step"), expected, strict=True):
        for name in ("loss", "grad_norm", "reward/margin", "logprob/chosen"):
            assert step["metrics"][name] == pytest.approx(record[name], rel=1e-4, abs=1e-6), name
