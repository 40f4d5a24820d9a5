"""Preference data: built, read, converted, split, audited and tokenised."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "build": "penchant.data.building",
    "build_from_samples": "penchant.data.building.sampled",
    "clean": "penchant.audit",
    "inspect": "penchant.audit",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'penchant.data' has no attribute {name!r}")
