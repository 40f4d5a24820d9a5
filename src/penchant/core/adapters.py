"""What the settings of a LoRA adapter say of the weights that it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Initial weights that come from passes over records; all but the first take them out of the base.
FROM_PASSES = ("eva", "corda", "lora_ga")
# Initial weights that leave the base as it is; the others are taken out of it.
STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")


def changes_base(settings: Mapping[str, Any]) -> bool:
    """Whether the weights under an adapter change: switched off, it is not what it started as."""
    initial = str(settings.get("init_lora_weights", True)).lower()
    kasa = settings.get("kasa_config") is not None
    return settings.get("bias", "none") != "none" or initial not in STARTS or kasa
