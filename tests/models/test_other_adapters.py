"""Which adapters of others can live on the policy's weights: those that leave them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from penchant.models.other_adapters import why_apart


def why(settings: dict[str, Any], base: Path, folder: Path) -> str | None:
    config = LoraConfig(
        r=2, target_modules=["q_proj"], base_model_name_or_path=str(base), **settings
    )
    config.save_pretrained(str(folder))
    return why_apart(str(folder), object(), str(base))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"},
        {"rank_pattern": {"q_proj": 4}},
    ],
    ids=str,
)
def test_an_adapter_of_matrices_beside_its_base_can_share(
    settings: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    assert why(settings, tiny_model_dir, tmp_path) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "lora_ga"},
        {"bias": "lora_only"},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"trainable_token_indices": [3]},
    ],
    ids=str,
)
def test_what_changes_its_base_cannot_share_it(
    settings: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    (name,) = settings
    reason = why(settings, tiny_model_dir, tmp_path)
    assert reason is not None and reason.startswith(f"it changes its base ({name}")
