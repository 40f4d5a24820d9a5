"""Adapters of other models on the policy's weights: which can live there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from penchant.models.lora import add_lora
from penchant.models.other_adapters import why_apart

KEYS: dict[str, Any] = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "q_proj,v_proj"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"init_lora_weights": "pissa"}, "it changes the weights that it stands on"),
        ({"bias": "all"}, "it changes the weights that it stands on"),
    ],
    ids=str,
)
def test_an_adapter_that_changes_its_base_lives_on_no_other_models_weights(
    tmp_path: Path, tiny_model_dir: Path, settings: dict[str, Any], reason: str | None
) -> None:
    def adapted(**more: Any) -> Any:
        return add_lora(AutoModelForCausalLM.from_pretrained(tiny_model_dir), **KEYS, **more)

    torch.manual_seed(0)
    adapted(settings=settings).save_pretrained(tmp_path / "other")
    assert why_apart(str(tmp_path / "other"), adapted(), str(tiny_model_dir)) == reason
