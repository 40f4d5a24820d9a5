"""Sizes of a model and of a run, read off the model's configuration before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penchant.core.errors import ModelError
from penchant.models.footprint import (
    ACTIVATION_BYTES,
    Sizes,
    state_bytes,
    update_bytes,
)
from penchant.models.size import base_model, layer_shapes
from penchant.models.ways import quantised

# What configurations call the number of experts that serve a token.
SERVED = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk")
OVERHEAD_BYTES = 0.6e9  # the program itself, and the device's libraries


def sizes_of(
    size: ModelSize,
    *,
    lora_r: int,
    half_base: bool,
    reference: bool,
    precision: str,
    device: str,
    num_models: int = 1,
    frozen_dtype: str = "auto",
    quantization: str = "none",
    optim: str = "adamw",
    adapter_weights: int | None = None,
) -> Sizes:
    """The sizes of a run, roughly, from its model's configuration alone.

    Args:
        size: of the model.
        lora_r: rank, 0 for all weights.
        half_base: whether the frozen weights, or with a rank of 0 all, are in half precision.
        reference: whether a frozen copy stands beside the policy.
        precision: of the arithmetic; device: where it runs.
        num_models: that are trained: two with a value model of its own.
        frozen_dtype: of the reference, as for `hold_frozen`.
        quantization: of the frozen weights: none, 4bit or 8bit.
        optim: the optimizer.
        adapter_weights: that are trained; default: those of LoRA on all linear layers.
    """
    kind = "fp32" if precision == "fp32" else "half"
    weights = size.num_parameters * (2.0 if half_base else 4.0)
    trained = size.rank_one * lora_r if adapter_weights is None else adapter_weights
    adapter = 4.0 * trained
    # Of all weights those that are trained in bf16.
    half_trained = half_base and not lora_r
    ends = 0 if lora_r else size.num_parameters - size.num_layer_parameters
    inner = trained if lora_r else size.num_layer_parameters
    state = state_bytes(optim, inner, ends, half=half_trained)
    # Autocast keeps a half-precision copy of every trained matrix that it multiplied with.
    copies = 2.0 * size.num_layer_parameters if kind == "half" and not half_base else 0.0
    frozen = 4.0 * size.num_parameters if frozen_dtype == "fp32" else weights - copies
    sizes = Sizes(
        weights=num_models * (weights + adapter),
        trained=num_models * (adapter if lora_r else weights),
        reference=frozen if reference else 0.0,
        rewards=0.0,
        process=OVERHEAD_BYTES,
        fixed=0.0 if lora_r else num_models * copies,
        by_token=num_models * (size.width + size.expert_width) * ACTIVATION_BYTES[kind, lora_r > 0],
        width=num_models * size.rank_one,
        matrices=num_models * size.num_layer_parameters,
        matrix_bytes=2.0 if half_base else 4.0,
        state=state / (adapter if lora_r else weights),
        update=0.0 if lora_r else update_bytes(optim, size.vocabulary * size.hidden, device),
        hidden=size.hidden,
        num_layers=num_models * size.num_layers,
        vocabulary=size.vocabulary,
        cache_token=4.0 * size.hidden * size.num_layers,
        head_trained=not lora_r,
        fused_head=True,
        half=kind == "half",
        device=device,
    )
    return sizes if quantization == "none" else quantised(sizes, quantization)


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on.

    Attributes:
        num_parameters: of the language model, tied ones once.
        num_layer_parameters: of the linear layers without the head.
        width: inputs and outputs of those layers, added up.
        hidden: size of the hidden state; num_layers: of them; vocabulary: tokens.
        context: longest input in tokens, where there is a limit.
        scores: whether it is a reward model.
        quantization: in which its matrices were saved: none, 4bit or 8bit.
        expert_width: as `width`, of the experts that serve one token and are no linear layers.
        adapter: weights of an adapter of rank 1 on all of them, where `width` does not say it.
    """

    num_parameters: int
    num_layer_parameters: int
    width: int
    hidden: int
    num_layers: int
    vocabulary: int
    context: int | None
    scores: bool
    quantization: str = "none"
    expert_width: int = 0
    adapter: int = 0

    @property
    def rank_one(self) -> int:
        """Weights of LoRA with a rank of 1: times the rank it is LoRA's weights."""
        return self.adapter or self.width


def empty_model(
    name: str,
    *,
    trust_remote_code: bool = False,
    find_class: Any = None,
    num_labels: int | None = None,
) -> Any:
    """A resolved model as its configuration says, without any memory for weights.

    Args:
        name: of a model or an adapter.
        trust_remote_code: run code that comes with the model.
        find_class: `causal_class` or `score_class` of `models.architecture`; default: the first.
        num_labels: of a score head; default: as the configuration says.

    Raises:
        ModelError: no configuration, or not one of a language model.
    """
    import torch

    from penchant.models.architecture import causal_class, read_config

    config = read_config(base_model(name), trust_remote_code)
    factory = (find_class or causal_class)(config, name, trust_remote_code)
    if num_labels is not None:
        config.num_labels = num_labels
    try:
        with torch.device("meta"):
            if hasattr(factory, "from_config"):  # an auto class, for code that comes with the model
                return factory.from_config(config, trust_remote_code=True)
            return factory(config)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model could be loaded from {name}: {error}") from error


def measure_model(name: str, *, trust_remote_code: bool = False) -> ModelSize:
    """Sizes of a resolved model, built from its configuration alone.

    Raises:
        ModelError: no configuration, or not one of a language model.
    """
    from penchant.models.architecture import text_backbone
    from penchant.models.score_model import is_score_model

    model = empty_model(name, trust_remote_code=trust_remote_code)
    config = model.config
    layers = list(layer_shapes(text_backbone(model)))
    experts = expert_width(text_backbone(model))
    num_parameters = sum(p.numel() for p in model.parameters())
    text = config.get_text_config()
    return ModelSize(
        num_parameters=num_parameters,
        num_layer_parameters=sum(a * b for a, b in layers),
        width=sum(a + b for a, b in layers),
        hidden=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        context=getattr(text, "max_position_embeddings", None),
        scores=is_score_model(name),
        quantization=_saved_quantization(config),
        expert_width=experts,
        adapter=adapter_weights(model) if experts else 0,
    )


def expert_width(model: Any) -> int:
    """Inputs and outputs of the experts that serve one token, added up over a backbone's layers.

    Most families hold a layer's experts as parameters `[experts, out, in]`, or transposed, which
    are no linear layers.
    """
    text = model.config.get_text_config()
    served = next((k for name in SERVED if isinstance(k := getattr(text, name, None), int)), 1)
    return served * sum(
        sum(parameter.shape[1:])
        for name, parameter in model.named_parameters()
        if "experts" in name and parameter.ndim == 3
    )


def adapter_weights(
    model: Any,
    *,
    r: int = 1,
    target_modules: str = "all-linear",
    target_parameters: str = "",
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Weights that an adapter trains, on linear layers, experts, and whole modules.

    Args:
        model: as `empty_model` makes it; it is used up.
        r, target_modules, target_parameters, settings: as of `add_lora`; the default is an adapter
            of rank 1 on all linear layers, and on experts where PEFT takes them.
    """
    from penchant.models.lora import add_lora

    # How weights begin changes no number of them, and may need the base's.
    shape = {n: v for n, v in (settings or {}).items() if not n.endswith(("_config", "_weights"))}
    adapted = add_lora(
        model,
        r=r,
        alpha=1,
        dropout=0.0,
        target_modules=target_modules,
        target_parameters=target_parameters,
        settings=shape,
    )
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def _saved_quantization(config: Any) -> str:
    """The nearest of the kinds that are told apart here."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return "none"
    said = settings if isinstance(settings, dict) else settings.to_dict()
    coarse = said.get("load_in_4bit") or said.get("bits", 8) <= 4
    return "4bit" if coarse else "8bit"
