"""JSON that any reader takes: it has no word for NaN or infinity, so that they become null."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def to_json(
    value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """JSON text of a value, with null for numbers that are not finite.

    Args:
        value: of what JSON has, tuples and mappings included.
        indent: spaces by which inner lines are indented; None: all on one line.
        default: makes something else of what JSON does not have.
    """
    text = {"ensure_ascii": False, "indent": indent, "default": default}
    try:
        return json.dumps(value, allow_nan=False, **text)  # type: ignore[arg-type]
    except ValueError:  # as for a circle, of which the second try speaks
        return json.dumps(_finite(value), **text)  # type: ignore[arg-type]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
