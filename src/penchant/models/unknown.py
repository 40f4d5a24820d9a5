"""What is said of a model that transformers has no class for."""

from __future__ import annotations

from typing import Any


def unknown_class(config: Any, name: str, does: str) -> str:
    """That transformers has no class for a model that `does` something."""
    import transformers

    named = ", ".join(config.architectures or ()) or "no architecture"
    return (
        f"transformers {transformers.__version__} has no class for models of type "
        f"{config.model_type} that {does} ({name} names {named})"
    )
