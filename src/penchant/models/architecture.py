"""Which class of transformers a checkpoint is loaded by, and what parts its model is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

# Linear layers of transformers' models that only multiply in another order.
STILL_LINEAR = ("FalconLinear",)
# Layers of Mamba's mixers that kernels stand in for.
HANDED_ON = ("out_proj", "x_proj", "dt_proj")
SCORING = ("ForSequenceClassification", "ForTokenClassification")


def read_config(name: str, trust_remote_code: bool) -> Any:
    """The configuration of a resolved name.

    Raises:
        ModelError: there is none, or it names an architecture that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model could be loaded from {name}: {error}") from error


def scoring_architecture(config: Any) -> str | None:
    """The architecture's name, where it is a classifier's."""
    return next((a for a in config.architectures or () if any(s in a for s in SCORING)), None)


def causal_class(config: Any, name: str, trust_remote_code: bool) -> Any:
    """The class that generates text: the one the checkpoint names, whatever its kind.

    Args:
        config: as `read_config` returned it.
        name: of the model, for errors.
        trust_remote_code: as for loading.

    Raises:
        ModelError: transformers has no such class.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return transformers.AutoModelForCausalLM
    for architecture in config.architectures or ():
        known = getattr(transformers, architecture, None)
        if known is not None and getattr(known, "can_generate", bool)():
            return known
    for mapping in (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    from penchant.models.unknown import unknown_class

    raise ModelError(unknown_class(config, name, "generates text"))


def is_pattern(names: str) -> bool:
    """Whether names of layers are told by a regular expression, not one by one."""
    return re.search(r"[*+?^$()\[\]{}|\\]", names) is not None


def text_backbone(model: Any) -> Any:
    """What makes hidden states of token ids: the model without its head and its other senses."""
    only_text = model.config.get_text_config() is model.config
    backbone = model.base_model if only_text else model.get_decoder()
    # Llama 4 passes its causal model, head and all, for the backbone.
    return backbone if backbone.get_output_embeddings() is None else backbone.model


def outside_text(model: Any) -> Iterator[nn.Module]:
    """The outermost modules that text does not pass: vision, sound, and what joins them to it."""
    backbone = text_backbone(model)
    if model.config.get_text_config() is not model.config:
        heads = (model.get_output_embeddings(), getattr(model, "score", None))
        yield from _beside(model, {id(part) for part in (backbone, *heads) if part is not None})


def _beside(module: nn.Module, kept: set[int]) -> Iterator[nn.Module]:
    for child in module.children():
        inside = {id(part) for part in child.modules()}
        if id(child) in kept:
            continue
        if inside & kept:
            yield from _beside(child, kept)
        else:
            yield child


def linear_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Linear layers and their names."""
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and not returns_more(module):
            yield name, module


def returns_more(module: torch.nn.Module) -> bool:
    """Whether it is a linear layer that a model made into something else, as Llama 4's router."""
    kind = type(module)
    own = kind.__module__.startswith("transformers.models.") and kind.__name__ not in STILL_LINEAR
    return own and isinstance(module, torch.nn.Linear)


def past_adapters(model: torch.nn.Module) -> set[str]:
    """Names of linear layers whose weights Mamba's mixers hand to kernels: no adapter is read."""
    mixers = [one for one in model.modules() if hasattr(one, "A_log") and hasattr(one, "D")]
    return {name for name in HANDED_ON for one in mixers if hasattr(one, name)}


def stateful_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The outermost modules that carry a state along the sequence.

    They are known by what they own: a convolution over positions, or the decay of a state.
    """
    from peft.tuners.lora import LoraLayer

    owned = [c.get_base_layer() if isinstance(c, LoraLayer) else c for c in model.children()]
    if hasattr(model, "A_log") or any(isinstance(child, torch.nn.Conv1d) for child in owned):
        return [model]
    return [module for child in model.children() for module in stateful_modules(child)]


def router_coefficient(settings: Any, given: float | None, name: str) -> float:
    """Of the loss that balances a model's experts: what is given, or the model's own; 0 is none.

    Raises:
        ModelError: one is given for a model without such a loss.
    """
    text = settings.get_text_config()
    if hasattr(text, "output_router_logits"):
        return float(getattr(text, "router_aux_loss_coef", 0.0) if given is None else given)
    if given:
        raise ModelError(
            f"router_aux_loss_coef is {given}, and {name} ({text.model_type}) has no router whose "
            "experts are balanced by a loss; leave router_aux_loss_coef out"
        )
    return 0.0


def require_whole(model: torch.nn.Module, missing: set[str], name: str) -> None:
    """Refuse a model some of whose weights were not in its files and are random.

    Raises:
        ModelError: names the first of them.
    """
    if missing:
        first = ", ".join(sorted(missing)[:3])
        raise ModelError(
            f"{name} lacks {len(missing)} of the weights of a {type(model).__name__} ({first}), "
            "which would be random; give a model that was saved with its head"
        )
