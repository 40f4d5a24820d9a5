"""What the settings of a LoRA adapter say of the weights that it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Initial weights that passes over records take out of the base.
TAKEN_OUT = ("corda", "lora_ga")
# All that come from passes over records.
FROM_PASSES = ("eva", *TAKEN_OUT)
# Initial weights that leave the base as it is; the others are taken out of it.
STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")


def changed_by(settings: Mapping[str, Any]) -> str:
    """By which setting the weights under an adapter change; empty where they stay as they are."""
    initial = str(settings.get("init_lora_weights", True))
    if initial.lower() not in STARTS:
        return f"init_lora_weights {initial}"
    if (bias := settings.get("bias", "none")) != "none":
        return f"bias {bias}"
    return "kasa_config" if settings.get("kasa_config") is not None else ""


def changes_base(settings: Mapping[str, Any]) -> bool:
    """Whether the weights under an adapter change: switched off, it is not what it started as."""
    return bool(changed_by(settings))
