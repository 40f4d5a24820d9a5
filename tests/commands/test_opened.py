"""What is known of a model before its weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penchant.commands.opened import off_is_start, tuned_from


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"init_lora_weights": True, "bias": "none"}, True),
        ({"init_lora_weights": "eva"}, True),
        ({"init_lora_weights": "pissa_niter_16"}, False),
        ({"init_lora_weights": "olora"}, False),
        ({"bias": "lora_only"}, False),
    ],
    ids=str,
)
def test_an_adapter_that_changes_its_base_is_not_its_start_when_it_is_off(
    tmp_path: Path, tiny_model_dir: Path, settings: dict[str, Any], expected: bool
) -> None:
    adapter = tmp_path / "run" / "model"
    adapter.mkdir(parents=True)
    saved = {**settings, "base_model_name_or_path": str(tiny_model_dir)}
    (adapter / "adapter_config.json").write_text(json.dumps(saved))
    assert off_is_start(str(adapter)) == expected
    assert tuned_from(adapter, str(adapter)) == str(tiny_model_dir)
    (tmp_path / "run" / "config.yaml").write_text("model: another\n")
    assert tuned_from(tmp_path / "run", str(adapter)) == "another"


def test_a_model_without_an_adapter_is_tuned_from_what_its_run_says(tiny_model_dir: Path) -> None:
    assert not off_is_start(str(tiny_model_dir))
    assert tuned_from(tiny_model_dir, str(tiny_model_dir)) is None
