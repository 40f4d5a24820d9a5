"""Models that are no language models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def classifier(tiny_model_dir: Path, tmp_path: Path) -> Callable[[int], str]:
    """Return a function that saves the tiny model with a head of so many labels."""

    def save(num_labels: int) -> str:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        folder = tmp_path / f"{num_labels}-labels"
        shutil.copytree(tiny_model_dir, folder)
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def adapter_run(tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any]) -> Path:
    """Return a run of six steps on an adapter, whose answers differ from its start's."""
    import penchant

    output = tmp_path_factory.mktemp("adapter") / "run"
    penchant.train("dpo", **tiny_keys, max_steps=6, output=output)
    return output


@pytest.fixture(scope="session")
def changed_base_run(tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any]) -> Path:
    """Return a run on an adapter that begins with what it takes out of its base."""
    import penchant

    output = tmp_path_factory.mktemp("changed-base") / "run"
    peft = {"init_lora_weights": "pissa"}
    penchant.train("dpo", **tiny_keys, lora_r=2, peft=peft, max_steps=6, output=output)
    return output
