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
