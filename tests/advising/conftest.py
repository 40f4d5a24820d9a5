"""Preference data that show one property each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = list[dict[str, Any]]


def pairs(num: int, *, longer_wins: float = 0.5, words: int = 3) -> Rows:
    """Pairs in which a share of the longer completions is chosen."""
    rows = []
    for i in range(num):
        long, short = f"answer {i} and more", f"answer {i}"
        longer = (i * 61 % 100) / 100 < longer_wins
        chosen, rejected = (long, short) if longer else (short, long)
        prompt = " ".join([f"prompt {i}", *["word"] * words])
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def voted(num: int, split: float) -> Rows:
    """Pairs with three votes each, of which a share is not unanimous."""
    rows: Rows = []
    for i, row in enumerate(pairs(num)):
        dissent = "b" if i < split * num else "a"
        rows.append(
            {
                "prompt": row["prompt"],
                "completion_a": row["chosen"],
                "completion_b": row["rejected"],
                "label": "a",
                "votes": ["a", "a", dissent],
            }
        )
    return rows


def judged(good: int, bad: int) -> Rows:
    """Labels, each under a prompt of its own."""
    return [
        {"prompt": f"prompt {i}", "completion": f"answer {i}", "label": i < good}
        for i in range(good + bad)
    ]


DATA: dict[str, Rows] = {
    "plain": pairs(400),
    "few": pairs(40),
    "noisy": voted(400, 0.4),
    "coin toss": voted(400, 0.7),
    "standard": voted(400, 0.12),
    "strong": voted(400, 0.04),
    "unanimous": voted(400, 0.0),
    "long wins": pairs(400, longer_wins=0.9),
    "short wins": pairs(400, longer_wins=0.1),
    "slightly longer": pairs(400, longer_wins=0.65),
    "long prompts": pairs(60, words=400),
    "labels": judged(130, 120),
    "mostly good": judged(300, 50),
    "mostly bad": judged(20, 200),
    "one prompt": [{**row, "prompt": "the same"} for row in pairs(20)],
    "margins": [{**row, "margin": 1.5} for row in pairs(20)],
    "two": pairs(2),
    "one": pairs(1),
    "prompts": [{"prompt": f"question {i}"} for i in range(400)],
}


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the file with the data of a name in `DATA`."""
    folder = tmp_path_factory.mktemp("advise data")  # the space is meant

    def write(name: str) -> Path:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(row) + "\n" for row in DATA[name]))
        return path

    return write
