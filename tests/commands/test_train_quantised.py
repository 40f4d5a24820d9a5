"""Whole runs on a base in codes: they learn, resume, merge, and serve every role of a policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import penchant
from penchant.core.errors import UserError

FREE = {"eval_samples": 0, "eval_on_start": False, "monitor_prompts": 0, "warmup_ratio": 0.0}


def read(run: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


@pytest.fixture(scope="module")
def coded_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint that bitsandbytes has quantised."""
    folder = tmp_path_factory.mktemp("coded")
    shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(
        tiny_model_dir, quantization_config=how, device_map="cpu"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def test_a_run_learns_merges_and_is_evaluated_on_the_base_it_was_trained_on(
    kind: str, tiny_keys: Any, held_out_file: Path, tmp_path: Path, caplog: Any
) -> None:
    run = tmp_path / "run"
    keys = {**tiny_keys, "quantization": kind, "eval_data": str(held_out_file)}
    result = penchant.train("dpo", output=run, num_train_epochs=5, merge=True, **keys)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scoring"].startswith("layout: packed")
    assert summary["reference"] == "adapter"
    losses = [record["loss"] for record in read(run, "metrics.jsonl") if "loss" in record]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert losses[-1] < 0.5 and result.after is not None
    found = penchant.evaluate(model=run, data=str(held_out_file))
    assert found.margin == pytest.approx(result.after.margin, abs=1e-4)
    merged = penchant.evaluate(
        model=run / "merged", data=str(held_out_file), reference=keys["model"]
    )
    assert merged.margin == pytest.approx(result.after.margin, abs=0.1)


def test_a_killed_run_ends_in_the_same_weights(tiny_keys: Any, tmp_path: Path) -> None:
    keys = {**tiny_keys, **FREE, "quantization": "4bit", "save_steps": 3, "max_steps": 6}
    whole, part = tmp_path / "whole", tmp_path / "part"
    penchant.train("dpo", output=whole, **keys)
    shutil.copytree(whole, part)
    for gone in ("summary.json", "model", "checkpoints/step-6"):
        target = part / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    penchant.train("dpo", output=part, resume=True, **keys)
    ours, theirs = (load_file(run / "model" / "adapter_model.safetensors") for run in (part, whole))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"reference": "copy"},
        {"reference": "cache"},
        {"gradient_checkpointing": "on"},
        {"precision": "bf16"},
    ],
    ids=["copy", "cache", "checkpointing", "bf16"],
)
def test_the_first_steps_are_the_same_another_way(
    changes: Any, tiny_keys: Any, tmp_path: Path
) -> None:
    losses = {}
    for name, more in (("plain", {}), ("other", changes)):
        keys = {**tiny_keys, **FREE, "quantization": "4bit", "max_steps": 3, **more}
        penchant.train("dpo", output=tmp_path / name, **keys)
        losses[name] = [record["loss"] for record in read(tmp_path / name, "metrics.jsonl")]
    near = 0.02 if "precision" in changes else 1e-4
    assert losses["other"] == pytest.approx(losses["plain"], abs=near)


def test_a_saved_quantised_checkpoint_trains_in_the_precision_of_the_run(
    coded_dir: Path, tiny_keys: Any, tmp_path: Path
) -> None:
    keys = {**tiny_keys, **FREE, "model": str(coded_dir), "max_steps": 6, "merge": True}
    penchant.train("dpo", output=tmp_path / "run", **keys)
    losses = [record["loss"] for record in read(tmp_path / "run", "metrics.jsonl")]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[-1] < 0.6
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    assert not hasattr(merged.config, "quantization_config")


@pytest.mark.slow
def test_a_reward_model_and_a_policy_that_it_judges_share_one_base_in_codes(
    tiny_keys: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    common = {**tiny_keys, **FREE, "quantization": "4bit", "max_steps": 2}
    penchant.train("reward", output=tmp_path / "reward", **common)
    sampling = {
        "data": [{"prompt": f"say {letter}"} for letter in "abcdefgh"],
        "reward": str(tmp_path / "reward"),
        "batch_size": 8,
        "max_completion_length": 6,
    }
    for method, more in (("ppo", {}), ("grpo", {"num_generations": 4})):
        run = tmp_path / method
        penchant.train(method, output=run, **{**common, **sampling, **more})
        losses = [record["loss"] for record in read(run, "metrics.jsonl")]
        assert len(losses) == 2
        held = json.loads((run / "summary.json").read_text())["memory_held"]
        # The reward is an adapter of the policy's base, and adds only its size.
        assert held["reward reward"] < held["policy, frozen"]
        # One base in codes: the embedding and head in fp32, the matrices in half a byte each.
        assert held["policy, frozen"] < 4 * 2 * 259 * 32 + 0.7 * 2 * 9216 + 5000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "4bit", "lora_r": 0}, "set lora_r above 0"),
        ({"quantization": "4bit", "sync_ref_model": True}, "codes cannot be mixed"),
        ({"quantization": "4bit", "model": "coded"}, "quantised already .bitsandbytes."),
        ({"lora_r": 0, "model": "coded"}, "lora_r 0 trains its weights themselves"),
        ({"sync_ref_model": True, "model": "coded"}, "sync_ref_model mixes its weights"),
    ],
)
def test_what_codes_cannot_do_is_refused_before_a_weight_is_loaded(
    changes: Any, message: str, coded_dir: Path, tiny_keys: Any, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    source = coded_dir if changes.get("model") == "coded" else Path(tiny_keys["model"])
    shutil.copytree(source, bare, ignore=lambda *_: ["model.safetensors"])
    keys = {**tiny_keys, **changes, "model": str(bare)}
    with pytest.raises(UserError, match=message):
        penchant.train("dpo", output=tmp_path / "run", **keys)


def test_check_knows_the_bytes_of_codes(tiny_keys: Any, tmp_path: Path) -> None:
    parts = {}
    for kind in ("none", "4bit"):
        for probe in (True, False):
            keys = {**tiny_keys, "quantization": kind, "output": tmp_path / "run"}
            estimate = penchant.check("dpo", probe=probe, **keys).estimate
            assert estimate is not None
            parts[kind, probe] = estimate.parts["weights"]
    assert parts["4bit", True] < parts["none", True]
    # Tables of 1 KB a layer do not count in a real model, and are as much as these layers.
    assert parts["4bit", False] == pytest.approx(parts["4bit", True], abs=14 * 1500)
