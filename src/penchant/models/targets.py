"""The names of layers and of parameters that LoRA is to adapt, checked against a model.

A model without weights will do: what no part of it is called is refused before any is loaded.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from penchant.core.errors import ModelError
from penchant.models.architecture import linear_layers, text_backbone


def required_layers(model: Any, names: str) -> list[str]:
    """The names of layers in `names`, which PEFT passes over as long as another one fits.

    Args:
        model: of transformers.
        names: comma-separated, without `all-linear`.

    Raises:
        ModelError: no layer has one of the names; with the nearest.
    """
    given = _split(names)
    layers = [f".{name}" for name, _ in text_backbone(model).named_modules()]
    layers += [f".{name}" for name, _ in model.named_children()]  # the head
    unknown = [n for n in given if not any(layer.endswith(f".{n}") for layer in layers)]
    if unknown or not given:
        linear = {name.rpartition(".")[2] for name, _ in linear_layers(text_backbone(model))}
        raise ModelError(
            f"lora_target_modules: no layer is called {', '.join(unknown) or 'nothing'}; "
            f"this model has {', '.join(sorted(linear))}"
        )
    return given


def required_parameters(model: Any, names: str) -> list[str]:
    """The names of parameters in `names`, of which PEFT only warns where none has one.

    Args:
        model: of transformers.
        names: comma-separated, each the end of a parameter's own name.

    Raises:
        ModelError: no parameter has one of the names; with the nearest.
    """
    given = _split(names)
    every = [name for name, p in text_backbone(model).named_parameters() if p.ndim in (2, 3)]
    # Of each layer's copy of a parameter, what all layers have in common.
    short = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in every})
    for name in given:
        if not any(f".{one}".endswith(f".{name}") for one in every):
            near = difflib.get_close_matches(name, short, n=3, cutoff=0.4) or short
            raise ModelError(
                f"lora_target_parameters: no parameter is called {name}; nearest are "
                f"{', '.join(near)}"
            )
    return given


def require_targets(model: Any, modules: str, parameters: str) -> None:
    """Refuse names that no layer or no parameter of a model has; as the two above say."""
    if modules != "all-linear":
        required_layers(model, modules)
    if parameters:
        required_parameters(model, parameters)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
