"""The machine and the model: what there is, and what training would take, without the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penchant.core.errors import ModelError

# Families whose positions have an embedding each: beyond the last there is none.
LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "biogpt", "openai-gpt")


def layer_shapes(model: Any) -> Iterator[tuple[int, int]]:
    """Shapes of the matrices between embeddings and head, as `[out, in]` or transposed."""
    for layer in matrix_layers(model):
        rows, columns = _shape(layer)
        yield rows, columns


def layer_weights(model: Any) -> Iterator[Any]:
    """The matrices between embeddings and head that are numbers."""
    for layer in matrix_layers(model):
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.is_floating_point() and weight.shape == _shape(layer):
            yield weight


def matrix_layers(model: Any) -> Iterator[Any]:
    """The layers between embeddings and head that multiply by a matrix, quantised ones too.

    GPT-2's keep theirs transposed; a reward model's head is its `score`. Of an adapter's layers
    the one it stands on is meant.
    """
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    for name, module in model.named_modules():
        if module in heads or ".lora_" in name or hasattr(module, "base_layer"):
            continue
        if "Embedding" not in type(module).__name__ and len(_shape(module)) == 2:
            yield module


def _shape(layer: Any) -> tuple[int, ...]:
    """Of its matrix, which codes do not have."""
    if isinstance(getattr(layer, "in_features", None), int):
        return layer.out_features, layer.in_features
    weight = getattr(layer, "weight", None)
    return () if weight is None else tuple(weight.shape)


def base_model(name: str) -> str:
    """The model that an adapter stands on, or the model itself."""
    from penchant.models.locate import is_adapter

    if not is_adapter(Path(name)):
        return name
    from penchant.models.adapter_files import adapter_base

    return base_model(adapter_base(name))


def saved_settings(base: str, *, trust_remote_code: bool) -> Any:
    """The configuration of a resolved model, or of the one that an adapter stands on."""
    from penchant.models.architecture import read_config

    return read_config(base_model(base), trust_remote_code)


def learned_positions(settings: Any) -> int | None:
    """How many positions a model has embeddings for; None where positions are computed."""
    text = settings.get_text_config()
    if text.model_type not in LEARNED_POSITIONS:
        return None
    return getattr(text, "max_position_embeddings", None)


def require_decoder(settings: Any, name: str) -> None:
    """Refuse a model that reads the prompt with an encoder of its own.

    Raises:
        ModelError: T5, BART and the like.
    """
    if getattr(settings, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder-decoder model ({settings.model_type}), which lays no completion "
            "after its prompt; give a causal (decoder-only) language model"
        )


def saved_generation(base: str) -> Any:
    """How a resolved model ends its answers, where it comes with that; None where it does not."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base_model(base))
    except OSError:
        return None
