"""Which keys go with weights in codes or half precision, and with optimizers beside AdamW."""

from __future__ import annotations

from typing import Any

from penchant.config.sections import OptimizerSection

WITHOUT_MOMENTS = ("adafactor", "sgd")
ADAM_KEYS = ("adam_beta1", "adam_beta2", "adam_epsilon")
ROUNDING = ("adamw", "adamw_8bit")


def check_weights(config: Any) -> None:
    """Refuse keys that an optimizer would not heed, or weights that it could not change.

    Args:
        config: a `RunConfig`.

    Raises:
        ValueError: which, and what to set.
    """
    if not config.lora_r and config.dtype == "fp16":
        raise ValueError(
            "dtype fp16 with lora_r 0 would train half-precision weights, whose small updates "
            "round to nothing; set dtype fp32 (precision may stay fp16), or use LoRA"
        )
    if config.quantization != "none":
        _check_quantization(config)
    if config.rounds_stochastically:
        _check_rounding(config)
    if config.optim in WITHOUT_MOMENTS:
        for key in ADAM_KEYS:
            if getattr(config, key) != OptimizerSection.model_fields[key].default:
                raise ValueError(f"optim {config.optim} has no {key}; drop it, or set optim adamw")
    if config.optim == "sgd" and config.learning_rate is None:
        raise ValueError(
            "optim sgd takes rates that are far above AdamW's, which are the methods' defaults; "
            "set learning_rate"
        )


def _check_rounding(config: Any) -> None:
    if config.optim not in ROUNDING:
        raise ValueError(
            f"dtype bf16 with lora_r 0 trains weights in bf16, whose small updates optim "
            f"{config.optim} would round to nothing; set optim {' or '.join(ROUNDING)}, which "
            "round at random (torchao), or dtype fp32 (precision may stay bf16)"
        )
    if config.precision != "bf16":
        raise ValueError(
            "dtype bf16 with lora_r 0 trains weights in bf16, and computes with them in bf16; set "
            "precision bf16, or dtype fp32"
        )
    if config.sync_ref_model:
        raise ValueError(
            "sync_ref_model mixes small shares of the policy into the reference, which weights in "
            "bf16 round to nothing; set dtype fp32, or drop it"
        )


def _check_quantization(config: Any) -> None:
    if config.lora_r == 0:
        raise ValueError(
            f"quantization {config.quantization} freezes the weights, and lora_r 0 trains them; "
            "set lora_r above 0, or drop quantization"
        )
    if config.sync_ref_model:
        raise ValueError(
            "sync_ref_model mixes the policy into a copy of its weights, and codes cannot be "
            "mixed; drop it or quantization"
        )
