"""Data and models for the checks: small, and sound unless a test makes them wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

ANSWERS = ("By noon it will be ready", "Ask again a little later", "Mind the open door there")


def chat(role: str, text: str) -> list[dict[str, str]]:
    """One message."""
    return [{"role": role, "content": text}]


def pair(number: int) -> dict[str, Any]:
    """A chat pair whose prompt no other number has; either side is the longer one in turn."""
    good = f"{ANSWERS[number % 3]}, say {number} people" + " of the town, and go" * (number % 2)
    bad = f"No idea at all, not even {number}" + " today, tomorrow or ever" * (1 - number % 2)
    return {
        "prompt": chat("user", f"Question {number * 7919 % 100003} of {number * 31} on {number}?"),
        "chosen": chat("assistant", good),
        "rejected": chat("assistant", bad),
    }


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write_pairs() -> Callable[..., Path]:
    """Return a function that writes 160 sound pairs, each changed by a function of it."""

    def written(path: Path, change: Callable[[dict[str, Any], int], dict[str, Any]]) -> Path:
        return write(path, (change(pair(number), number) for number in range(160)))

    return written


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound data of every kind: 160 training records and 16 held out."""
    folder = tmp_path_factory.mktemp("sound")
    train, held_out = [pair(i) for i in range(160)], [pair(i) for i in range(160, 176)]

    def labels(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"prompt": p["prompt"], "completion": p["chosen" if i % 2 else "rejected"],
             "label": bool(i % 2)}
            for i, p in enumerate(pairs)
        ]  # fmt: skip

    prompts = [{"prompt": p["prompt"]} for p in train]
    return {
        "pairs": write(folder / "pairs.jsonl", train),
        "pairs_held_out": write(folder / "pairs-held-out.jsonl", held_out),
        "labels": write(folder / "labels.jsonl", labels(train)),
        "labels_held_out": write(folder / "labels-held-out.jsonl", labels(held_out)),
        "prompts": write(folder / "prompts.jsonl", prompts),
        "prompts_held_out": write(
            folder / "prompts-held-out.jsonl", [{"prompt": p["prompt"]} for p in held_out]
        ),
    }


@pytest.fixture(scope="session")
def changed_model(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a function that copies the tiny model and changes keys of its JSON files."""

    def change(**by_file: Mapping[str, Any]) -> Path:
        folder = tmp_path_factory.mktemp("changed") / "model"
        shutil.copytree(tiny_model_dir, folder)
        for name, values in by_file.items():
            file = folder / f"{name}.json"
            known = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps({**known, **values}), encoding="utf-8")
        return folder

    return change
