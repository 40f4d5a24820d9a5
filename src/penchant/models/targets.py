"""The names of layers and of parameters that LoRA is to adapt, checked against a model.

A model without weights will do: what no part of it is called is refused before any is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from penchant.core.errors import ModelError
from penchant.models.architecture import (
    is_pattern,
    linear_layers,
    past_adapters,
    text_backbone,
)


def required_layers(model: Any, names: str, key: str = "lora_target_modules") -> list[str]:
    """The names of layers in `names`, which PEFT passes over as long as another one fits.

    Args:
        model: of transformers.
        names: comma-separated, without `all-linear`.
        key: that they were given to.

    Raises:
        ModelError: no layer has one of the names, or what has it would not read an adapter.
    """
    given = _split(names)
    layers = [f".{name}" for name, _ in text_backbone(model).named_modules()]
    layers += [f".{name}" for name, _ in model.named_children()]  # the head
    unknown = [n for n in given if not any(layer.endswith(f".{n}") for layer in layers)]
    if unknown or not given:
        linear = {name.rpartition(".")[2] for name, _ in linear_layers(text_backbone(model))}
        raise ModelError(
            f"{key}: no layer is called {', '.join(unknown) or 'nothing'}; this model has "
            f"{', '.join(sorted(linear))}{_others(unknown, layers)}"
        )
    unread = sorted(past_adapters(text_backbone(model)).intersection(given))
    if unread and key == "lora_target_modules":  # trained as a whole, the weight itself is read
        raise ModelError(
            f"{key}: {', '.join(unread)} of this model's Mamba layers would be "
            "adapted for nothing, since kernels read the weight alone; leave out "
            f"{', '.join(unread)}"
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


def required_beside(model: Any, parameters: str, whole: Sequence[str] | None) -> list[str]:
    """The parameters that are named, where they and the layers that are saved whole are there.

    Raises:
        ModelError: one is not.
    """
    if whole:
        required_layers(model, ",".join(whole), "peft: modules_to_save")
    return required_parameters(model, parameters) if parameters else []


def require_targets(model: Any, modules: str, parameters: str, whole: Sequence[str] = ()) -> None:
    """Refuse names that no layer or no parameter of a model has; as the two above say.

    Args:
        model: of transformers.
        modules: names of layers, all-linear, or a pattern, which has to match one.
        parameters: names of parameters.
        whole: names of layers that are trained as a whole.
    """
    if is_pattern(modules):
        _require_match(model, modules)
    elif modules != "all-linear":
        required_layers(model, modules)
    if parameters:
        required_parameters(model, parameters)
    if whole:
        required_layers(model, ",".join(whole), "peft: modules_to_save")


def _require_match(model: Any, pattern: str) -> None:
    names = [name for name, _ in model.named_modules()]
    try:
        matches = any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
        raise ModelError(f"lora_target_modules {pattern!r} is no pattern: {error}") from error
    if not matches:
        example = next((n for n in names if n.endswith("_proj")), names[-1])
        raise ModelError(
            f"lora_target_modules {pattern!r} matches no layer; a name is such as {example}"
        )


def _others(unknown: list[str], layers: list[str]) -> str:
    """The nearest to unknown names among all layers, which need not be linear."""
    last = {name.rpartition(".")[2] for name in layers}
    near = {one for name in unknown for one in difflib.get_close_matches(name, last, n=1)}
    return f"; nearest are {', '.join(sorted(near))}" if near else ""


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
