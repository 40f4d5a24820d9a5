"""Runs that are watched: what they write, that they stay the same, and what findings do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import penchant
from penchant.core.findings import Finding
from penchant.guards.monitors import supervisor
from penchant.training.checkpoint import checkpoint_steps

PROMPTS = [{"prompt": f"say {word}", "n": i} for i, word in enumerate("abcdefghij")]


def lines(run: Path, file: str) -> list[dict[str, Any]]:
    path = run / file
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checks(run: Path) -> list[dict[str, Any]]:
    return [r for r in lines(run, "metrics.jsonl") if "monitor/seconds" in r]


def weights(run: Path) -> bytes:
    return (run / "model" / "adapter_model.safetensors").read_bytes()


def letters(completions: list[str], **_: Any) -> list[float]:
    return [sum("a" <= c.lower() <= "z" for c in text) / 6 for text in completions]


@pytest.fixture
def keys(tiny_keys: dict[str, Any], held_out_file: Path) -> dict[str, Any]:
    """Six steps, watched every three of them."""
    return {
        **tiny_keys, "eval_data": str(held_out_file), "monitor_prompts": 4, "monitor_steps": 3,
        "monitor_length": 6, "eval_samples": 0,
    }  # fmt: skip


@pytest.fixture
def online(tiny_model_dir: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_dir), "data": PROMPTS, "reward": letters, "batch_size": 8,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_length": 64,
        "max_completion_length": 6, "max_steps": 8, "ppo_epochs": 1, "learning_rate": 1e-2,
        "lora_r": 4, "eval_on_start": False, "warmup_ratio": 0.0, "monitor_prompts": 4,
        "monitor_steps": 2, "save_steps": 4,
    }  # fmt: skip


def test_offline_run_answers_the_same_held_out_prompts_and_measures(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("dpo", output=tmp_path / "run", monitor_reward="length:4", **keys)
    found = checks(tmp_path / "run")
    assert [r["step"] for r in found] == [0, 3, 6]
    first, last = found[0], found[-1]
    assert first["monitor/kl_sequence"] == pytest.approx(0, abs=1e-5)
    assert last["monitor/kl_sequence"] > 0.01
    assert last["monitor/kl_sequence"] == pytest.approx(
        last["monitor/kl"] * last["monitor/length"], rel=1e-4
    )
    assert {"monitor/entropy", "monitor/self_bleu", "monitor/held_out_reward"} <= last.keys()
    assert 0 <= last["monitor/win_rate"] <= 1
    answers = lines(tmp_path / "run", "monitor.jsonl")
    assert len(answers) == 12
    assert [a["prompt"] for a in answers[:4]] == [a["prompt"] for a in answers[-4:]]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["monitor_seconds"] > 0


def test_watching_changes_neither_weights_nor_random_numbers(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    for name, more in {"on": {}, "off": {"monitor_prompts": 0}}.items():
        penchant.train("dpo", output=tmp_path / name, **{**keys, "lora_dropout": 0.1, **more})
    assert weights(tmp_path / "on") == weights(tmp_path / "off")
    assert checks(tmp_path / "off") == []


def test_online_run_is_watched_on_a_sample_of_its_prompts_and_keeps_its_statistics(
    online: dict[str, Any], tmp_path: Path
) -> None:
    for name, more in {"on": {}, "off": {"monitor_prompts": 0}}.items():
        penchant.train("ppo", output=tmp_path / name, **{**online, **more})
    assert weights(tmp_path / "on") == weights(tmp_path / "off")
    (note,) = [
        f for f in lines(tmp_path / "on", "findings.jsonl") if f["id"] == "no-held-out-prompts"
    ]
    assert "4 of the training prompts" in note["what"]
    assert all("reward" in answer for answer in lines(tmp_path / "on", "monitor.jsonl"))


def test_reference_free_method_tells_its_divergence_by_switching_the_adapter_off(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("simpo", output=tmp_path / "run", **keys)
    assert checks(tmp_path / "run")[-1]["monitor/kl_sequence"] > 0


def test_without_held_out_prompts_a_split_is_proposed(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("dpo", output=tmp_path / "run", **{**tiny_keys, "monitor_prompts": 4})
    (note,) = [
        f for f in lines(tmp_path / "run", "findings.jsonl") if f["id"] == "no-held-out-prompts"
    ]
    assert "--train_fraction 0.9" in note["remedy"]
    assert checks(tmp_path / "run") == []


def test_short_run_is_not_watched_for_longer_than_it_takes(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    """Six steps of a tiny model cannot pay for answers: said once, and left out."""
    penchant.train("dpo", output=tmp_path / "run", **{**keys, "monitor_steps": None})
    ids = [f["id"] for f in lines(tmp_path / "run", "findings.jsonl")]
    assert ids.count("monitor-too-slow") == 1
    assert checks(tmp_path / "run") == []


def test_reward_that_fails_on_monitored_answers_does_not_end_the_run(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def judge(completions, **_):\n    raise ValueError('no')\n")
    penchant.train("dpo", output=tmp_path / "run", monitor_reward=f"{file}:judge", **keys)
    ids = [f["id"] for f in lines(tmp_path / "run", "findings.jsonl")]
    assert ids.count("monitor-failed") == 1
    assert (tmp_path / "run" / "summary.json").exists()


def alarm_from(step: int, name: str = "drift") -> Any:
    """A detector's stand-in: it finds something at and behind a step."""

    def detect(history: Any, facts: Any, **_: Any) -> list[Finding]:
        found = Finding(name, "warning", "too far", "hold it", {"kl": 20.0})
        return [found] if history.step >= step else []

    return detect


def test_stop_ends_the_run_with_its_evaluation_and_model(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "detect", alarm_from(4))
    result = penchant.train("dpo", output=tmp_path / "run", on_finding="drift=stop", **keys)
    assert result.steps == 4
    assert result.after is not None
    assert weights(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped"].startswith("drift")
    (found,) = [f for f in lines(tmp_path / "run", "findings.jsonl") if f["id"] == "drift"]
    assert found["action"].startswith("stop")


def test_adapt_raises_the_penalty_and_resumes_with_it(
    online: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "detect", alarm_from(3))
    keys = {**online, "on_finding": "adapt", "init_kl_coef": 0.05, "adap_kl_ctrl": False}
    penchant.train("ppo", output=tmp_path / "run", **keys)
    coefficients = [r["objective/kl_coef"] for r in lines(tmp_path / "run", "metrics.jsonl")
                    if "objective/kl_coef" in r]  # fmt: skip
    assert coefficients[0] == 0.05
    assert coefficients[-1] >= 0.1
    told = [f["action"] for f in lines(tmp_path / "run", "findings.jsonl") if f["id"] == "drift"]
    assert told[0] == (
        "adapt: init_kl_coef raised from 0.05 to 0.2, learning_rate lowered from 0.01 to 0.005"
    )
    whole = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    for step in checkpoint_steps(run / "checkpoints"):
        if step > 4:
            shutil.rmtree(run / "checkpoints" / f"step-{step}")
    penchant.train("ppo", output=run, resume=True, **keys)
    again = load_file(run / "model" / "adapter_model.safetensors")
    assert all(whole[name].equal(again[name]) for name in whole)


def test_adapt_raises_beta_of_methods_with_a_reference(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "detect", alarm_from(1))
    for name, more in {"adapted": {"on_finding": "adapt"}, "warned": {}}.items():
        penchant.train("dpo", output=tmp_path / name, **{**keys, **more})
    assert weights(tmp_path / "adapted") != weights(tmp_path / "warned")
    (warned,) = [f for f in lines(tmp_path / "warned", "findings.jsonl") if f["id"] == "drift"]
    assert "action" not in warned
    (first, *_) = [f for f in lines(tmp_path / "adapted", "findings.jsonl") if f["id"] == "drift"]
    assert first["action"].startswith("adapt: beta raised from 0.1 to 0.2, learning_rate lowered")


def test_rollback_returns_to_the_best_weights(
    online: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def rising(completions: list[str], **_: Any) -> list[float]:
        """Every check is the best so far, also that which raises the alarm."""
        calls.append(completions)
        return [len(calls) + value for value in letters(completions)]

    monkeypatch.setattr(supervisor, "detect", alarm_from(8))
    online |= {"reward": rising, "reward_normalization": "none"}
    penchant.train("ppo", output=tmp_path / "run", **online, on_finding="drift=rollback")
    (found,) = [f for f in lines(tmp_path / "run", "findings.jsonl") if f["id"] == "drift"]
    assert found["action"].startswith("rollback: back to the weights of step 6 ")
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-6" / "weights.safetensors")
    final = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    name = next(iter(final))
    saved = next(
        v for k, v in kept.items() if k.endswith(name.removesuffix(".weight") + ".default.weight")
    )
    assert final[name].equal(saved)
