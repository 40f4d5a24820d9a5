"""Faces of other libraries on Penchant's engine."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __dir__() -> list[str]:
    return sorted({*globals(), "trl"})


def __getattr__(name: str) -> Any:
    if name == "trl":
        return import_module("penchant.compat.trl")
    raise AttributeError(f"module 'penchant.compat' has no attribute {name!r}")
