"""Small records, a small model and TRL's own classes, for scripts that were written for TRL."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Is {number} {'so' * (number % 5)}?",
            "chosen": " yes" + " sir" * (number % 3),
            "rejected": " no" + "!" * (number % 2),
        }
        for number in range(16)
    ]


@pytest.fixture(scope="module")
def preference_dataset(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(rows)


@pytest.fixture
def model(tiny_model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Two steps of four records, in order."""
    return {
        "output_dir": str(tmp_path / "run"),
        "max_length": 64,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "bf16": False,
    }


@pytest.fixture(scope="session")
def of_trl() -> Callable[[str], Any]:
    """A class of TRL by its name; some of them are among its experiments."""
    trl = pytest.importorskip("trl")

    def find(name: str) -> Any:
        kind = name.removesuffix("Config").removesuffix("Trainer").lower()
        home = f"trl.experimental.{kind}" if kind in ("orpo", "cpo") else "trl"
        return getattr(importlib.import_module(home) if home != "trl" else trl, name)

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    return find


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the screen showed since the last call, its lines joined."""
    return lambda: " ".join(capsys.readouterr().err.split())
