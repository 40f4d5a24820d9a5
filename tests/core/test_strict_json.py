"""What is written as JSON is JSON to every reader."""

from __future__ import annotations

import json
from pathlib import Path

import penchant
from penchant.core.strict_json import to_json
from penchant.training.folder import RunDirectory

SOURCE = Path(penchant.__file__).parent


def refuse(word: str) -> float:
    raise AssertionError(f"{word} is not JSON")


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    """An infinite gradient norm would make metrics.jsonl unreadable to other tools."""
    inf, nan = float("inf"), float("nan")
    record = {"grad_norm": inf, "inner": [nan, {"x": (-inf, 1.5)}], "text": "Infinity"}
    wanted = {"grad_norm": None, "inner": [None, {"x": [None, 1.5]}], "text": "Infinity"}
    assert json.loads(to_json(record, indent=2), parse_constant=refuse) == wanted
    run = RunDirectory(tmp_path / "run", {}, resume=False)
    run.append("metrics.jsonl", record)
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == wanted


def test_fp64_is_asked_of_the_cpu_alone() -> None:
    """Apple's MPS has no fp64: a run would fail there before its first step."""
    rooms = ("methods", "objectives", "models", "rl", "training", "guards")
    files = [file for room in rooms for file in (SOURCE / room).rglob("*.py")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert [x for x in lines if ".double()" in x.replace(".cpu().double()", "")] == []
