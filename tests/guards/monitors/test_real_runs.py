"""Real small runs that go wrong on purpose are flagged by the intended detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import penchant

pytestmark = pytest.mark.slow


def found(run: Path) -> set[str]:
    path = run / "findings.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {f["id"] for f in map(json.loads, lines) if f["step"] > 0}


@pytest.fixture
def keys(tiny_keys: dict[str, Any], held_out_file: Path) -> dict[str, Any]:
    return {
        **tiny_keys, "eval_data": str(held_out_file), "monitor_prompts": 8, "monitor_steps": 10,
        "monitor_length": 24, "eval_samples": 0, "max_steps": 60, "eval_steps": 10,
    }  # fmt: skip


def test_learning_rate_of_almost_nothing_does_not_learn(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    penchant.train("dpo", output=tmp_path / "run", **{**keys, "learning_rate": 1e-9})
    assert found(tmp_path / "run") == {"no-learning"}


def say_it_again(completions: list[str], **_: Any) -> list[float]:
    """The share of words that were said before: greatest for one word over and over."""
    texts = [text.lower().split() for text in completions]
    return [1 - len(set(words)) / max(1, len(words)) for words in texts]


def test_reward_that_can_be_gamed_without_a_kl_penalty_drifts(shared: Path, tmp_path: Path) -> None:
    heroes = ("girl", "boy", "dog", "cat", "bird", "king", "bear", "fox")
    rows = [
        {"prompt": f"Once upon a time there was a {kind} {hero}"}
        for kind in ("little", "big", "small", "young")
        for hero in heroes
    ]
    penchant.train(
        "ppo", model=str(shared / "models" / "stories260k"), data=rows[:24], eval_data=rows[24:],
        output=tmp_path / "run", reward=say_it_again, init_kl_coef=0.0, adap_kl_ctrl=False,
        learning_rate=3e-3, lr_scheduler_type="constant", batch_size=32,
        per_device_train_batch_size=16, gradient_accumulation_steps=1, max_completion_length=24,
        max_length=64, max_steps=24, monitor_prompts=8, monitor_steps=8, monitor_length=24,
        monitor_share=1.0, eval_samples=0,
    )  # fmt: skip
    assert {"drift", "reward-hacking"} <= found(tmp_path / "run")


def test_one_answer_to_every_question_collapses(
    keys: dict[str, Any], training_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in training_file.read_text().splitlines()]
    rows = [{**row, "chosen": " yes, yes, yes, yes, yes"} for row in rows]
    penchant.train("orpo", output=tmp_path / "run", **{**keys, "data": rows, "lora_r": 0})
    assert "collapse" in found(tmp_path / "run")


def test_sound_run_raises_no_alarm(keys: dict[str, Any], tmp_path: Path) -> None:
    penchant.train("dpo", output=tmp_path / "run", **{**keys, "learning_rate": 2e-3})
    assert not found(tmp_path / "run") & {"drift", "collapse", "no-learning", "over-fitting"}


def test_wrong_labels_learnt_by_heart_over_fit(
    keys: dict[str, Any], training_file: Path, tmp_path: Path
) -> None:
    """Half the few pairs contradict the rule: what is learnt of them is of no use elsewhere."""
    rows = [json.loads(line) for line in training_file.read_text().splitlines()][:8]
    for row in rows[:5]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    penchant.train("dpo", output=tmp_path / "run", **{**keys, "data": rows, "learning_rate": 1e-2})
    assert "over-fitting" in found(tmp_path / "run")
