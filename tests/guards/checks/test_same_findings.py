"""`penchant check` and `penchant data inspect` find the same faults in the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.data import inspect


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def judged(completion: str, label: bool) -> dict[str, Any]:
    return {"prompt": "p", "completion": completion, "label": label}


PAIRS = [
    pair("one", "It is so.", "it  IS so. "),
    pair("two", "yes", "no"),
    pair("two", "yes", "no"),
    pair("three", "up", "down"),
    pair("three", "down", "up"),
    *(pair("four", *sides) for sides in (("a", "b"), ("b", "c"), ("c", "a"))),
    pair("five", "red", "blue", agreement=0.55),
    pair("six", "old", "new", margin=0),
]
TIE = {"prompt": "seven", "completion_a": "x", "completion_b": "y", "label": "tie"}
LABELS = [judged("x", True), judged("y", False), judged("x", False), judged("z", True)]
LABELS += [LABELS[1], {**LABELS[1], "prompt": "q"}]
CASES = {
    "white-space": ("dpo", PAIRS, 1), "duplicates": ("dpo", PAIRS, 1),
    "contradictions": ("dpo", PAIRS, 2), "cycles": ("dpo", PAIRS, 3),
    "low-agreement": ("dpo", PAIRS, 1), "zero-margin": ("dpo", PAIRS, 1),
    "ties": ("dpo", [TIE, {**TIE, "label": "a"}], 1),
    "contradictions of labels": ("kto", LABELS, 2), "duplicates of labels": ("kto", LABELS, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_check_and_inspect_find_the_same(case: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    method, rows, num = CASES[case]
    name, file = case.partition(" ")[0], tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    inspected = {one.id: one for one in inspect(file).findings}[name]
    checked = penchant.check(method, model=str(tiny_model_dir), data=str(file), probe=False)
    found = {one.id: one for one in checked.findings}
    assert name in found, checked.findings
    assert len(inspected.rows) == num
    assert num in found[name].evidence.values()
    assert found[name].severity == inspected.severity
