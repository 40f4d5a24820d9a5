"""What a run's memory depends on, read off its model's configuration before weights are loaded."""

from __future__ import annotations

from penchant.models.footprint import (
    ACTIVATION_BYTES,
    Sizes,
    state_bytes,
    update_bytes,
)
from penchant.models.size import ModelSize

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
    """
    kind = "fp32" if precision == "fp32" else "half"
    weights = size.num_parameters * (2.0 if half_base else 4.0)
    adapter = 4.0 * size.width * lora_r
    # Of all weights those that are trained in bf16.
    half_trained = half_base and not lora_r
    ends = 0 if lora_r else size.num_parameters - size.num_layer_parameters
    inner = size.width * lora_r if lora_r else size.num_layer_parameters
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
        width=num_models * size.width,
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
    return sizes if quantization == "none" else sizes.quantised(quantization)
