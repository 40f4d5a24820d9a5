"""`penchant check` and `penchant data inspect` find the same faults in the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.core.findings import IDS
from penchant.data import inspect
from penchant.data.faults import FAULTS


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
SAID = "a small boat with one red sail goes over the wide and quiet lake at dawn every day"


def varied(number: int, *changed: str) -> str:
    """A text of its own, or one that shares all but a word with another."""
    return " ".join([*changed, *(f"{word}{number}" for word in SAID.split())])


LABELS += [
    judged(varied(1), True),
    judged(varied(1, "then"), False),
    judged(varied(1, "thus"), True),
]


PAIRS += [
    pair(varied(1), varied(2), varied(3)),
    pair(varied(1), varied(2, "then"), varied(3)),
    pair("mail", "Write to ann.lee@mail.example.org.", "I can not."),
    pair("marks", "yes<|im_end|>", "no [/INST]"),
    pair("<image>\nWhat is it?", "a boat", "a lake"),
    pair("said", "nan", "It is three."),
    pair("seen", "so it is", "so\u200b it is"),
]
VOTED = [pair(f"p{n}", "yes", "no", agreement=0.55 if n % 4 == 0 else 1.0) for n in range(40)]
LONG = [pair(f"p{n}", f"yes {n} and so on", "no") for n in range(30)]
HELD_OUT = [pair("two", "yes", "no"), pair(varied(1, "then"), "a", "b")]
FILES = {
    "pairs": ("dpo", PAIRS, None, {
        "white-space": 2, "duplicates": 1, "contradictions": 2, "cycles": 3, "low-agreement": 1,
        "split-votes": 1, "zero-margin": 1, "near-duplicates": 1, "personal-data": 1,
        "template-leftovers": 1, "media-marks": 1, "stand-in-answers": 1,
    }),
    "pairs beside held-out ones": ("dpo", PAIRS, HELD_OUT, {"leaks": 2, "near-leaks": 2}),
    "votes": ("dpo", VOTED, None, {"label-noise": 0, "split-votes": 10, "low-agreement": 10}),
    "one longer": ("dpo", LONG, None, {"length-bias": 30}),
    "ties": ("dpo", [TIE, {**TIE, "label": "a"}], None, {"ties": 1}),
    "refused": ("dpo", [*LONG, pair("p", "", "x"), pair("p", "x", "x"), {"prompt": "p"}], None,
                {"refused-rows": 3}),
    "labels": ("kto", LABELS, None, {"contradictions": 2, "duplicates": 1, "near-duplicates": 1}),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_check_and_inspect_find_the_same(file: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    method, rows, held_out, wanted = FILES[file]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    report = inspect(data, eval_data=held_out)
    checked = penchant.check(
        method, model=str(tiny_model_dir), data=str(data), eval_data=held_out, probe=False
    )
    inspected = {one.id: one for one in report.findings}
    found = {one.id: one for one in checked.findings}
    assert wanted.items() <= {name: len(one.rows) for name, one in inspected.items()}.items()
    assert wanted.keys() <= found.keys(), checked.findings
    for name in {*inspected} & set(IDS) | wanted.keys():
        assert found[name].severity == inspected[name].severity, name
        assert found[name].what == inspected[name].title
    assert {*found} & {*FAULTS, "length-bias"} <= {*inspected}
