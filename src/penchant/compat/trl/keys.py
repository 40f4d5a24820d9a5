"""From TRL's arguments to the keys of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penchant.config.keys import RunConfig, load_config
from penchant.core.errors import ConfigError
from penchant.methods import METHODS

if TYPE_CHECKING:
    from penchant.compat.trl.configs import ReferenceConfig, TrainingConfig

# TRL's argument: our key.
KEYS = {
    "output_dir": "output",
    **{
        name: name
        for name in (
            *("seed", "trust_remote_code", "max_length", "max_prompt_length"),
            *("learning_rate", "num_train_epochs", "lr_scheduler_type", "weight_decay"),
            *("per_device_train_batch_size", "gradient_accumulation_steps"),
            *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
            *("per_device_eval_batch_size", "eval_on_start", "logging_steps"),
            "load_best_model_at_end",
        )
    },
}
STRATEGIES = {"no": "never", "steps": "every so many steps"}
NEVER = sys.maxsize
PLACEHOLDER = {"model": "<model>", "data": "<data>", "lora_r": 0}


def check(config: TrainingConfig) -> None:
    """Refuse what no run could have, before there is a model or data."""
    held_out = {"eval_data": "<data>"} if config.eval_strategy != "no" else {}
    run_config(config, {**PLACEHOLDER, **held_out})


def run_config(config: TrainingConfig, given: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run.

    Args:
        config: TRL's.
        given: keys that it says nothing of: the model, the data, LoRA.

    Raises:
        ConfigError: an argument that cannot have its effect, or a wrong value.
    """
    method, options = config.chosen()
    keys = {
        **{key: getattr(config, name) for name, key in KEYS.items()},
        "report_to": _trackers(config.report_to),
        "max_steps": None if config.max_steps < 0 else config.max_steps,
        "warmup_ratio": _warmup_ratio(config),
        "precision": _precision(config),
        "gradient_checkpointing": _switch(config.gradient_checkpointing),
        "shuffle": _shuffle(config.train_sampling_strategy),
        "eval_samples": 3 if config.generate_during_eval else 0,
        "monitor_prompts": 0,  # TRL's logs have nothing of the kind
        **_evaluation(config),
        **_saving(config),
        **_reference(config),
        "unpair": METHODS[method].data == "labels",
        **options,
    }
    try:
        return load_config(method, {**keys, **given})
    except ConfigError as error:
        if keys.get("reference") == "cache" and "cache" in str(error):
            raise ConfigError(
                "precompute_ref_log_probs cannot be had with these arguments, which ask the "
                "reference for more than can be kept; drop it"
            ) from error
        raise


def _trackers(names: str | list[str] | None) -> str:
    return ",".join(names or []) if not isinstance(names, str) else names


def _switch(value: bool | None) -> str:
    return "auto" if value is None else "on" if value else "off"


def _shuffle(strategy: str) -> bool:
    if strategy not in ("random", "sequential"):
        raise ConfigError(
            f"train_sampling_strategy={strategy!r} cannot be had here; set random or sequential"
        )
    return strategy == "random"


def _precision(config: TrainingConfig) -> str:
    if config.fp16:
        if config.bf16:
            raise ConfigError("bf16 and fp16 exclude each other; drop one of them")
        return "fp16"
    return {True: "bf16", False: "fp32", None: "auto"}[config.bf16]


def _warmup_ratio(config: TrainingConfig) -> float:
    steps = config.warmup_steps
    if not steps:
        return config.warmup_ratio
    if config.warmup_ratio:
        raise ConfigError("warmup_steps and warmup_ratio exclude each other; drop one of them")
    if 0 < steps < 1:  # transformers 5 takes a share of the steps here
        return steps
    if steps < 0 or steps != int(steps):
        raise ConfigError(f"warmup_steps must be a number of steps, got {steps}; set warmup_steps")
    if config.max_steps < 0:
        raise ConfigError("warmup_steps needs max_steps; set it, or warmup_ratio instead")
    if steps >= config.max_steps:
        raise ConfigError(
            f"warmup_steps ({steps:g}) must be below max_steps ({config.max_steps}); lower it"
        )
    return (steps - 0.5) / config.max_steps  # the engine rounds up


def _evaluation(config: TrainingConfig) -> dict[str, Any]:
    _require_strategy("eval_strategy", config.eval_strategy, "eval_steps")
    if config.eval_strategy == "no":
        if config.eval_steps is not None:
            raise ConfigError("eval_steps has no effect by itself; set eval_strategy='steps'")
        if config.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end needs evaluations to choose from; set eval_strategy='steps'"
            )
        return {}
    return {"eval_steps": config.eval_steps or config.logging_steps}


def _saving(config: TrainingConfig) -> dict[str, Any]:
    _require_strategy("save_strategy", config.save_strategy, "save_steps")
    return {
        "save_steps": config.save_steps if config.save_strategy == "steps" else NEVER,
        "save_total_limit": NEVER if config.save_total_limit is None else config.save_total_limit,
    }


def _require_strategy(name: str, value: str, steps: str) -> None:
    if value not in STRATEGIES:
        raise ConfigError(
            f"{name}={value!r} cannot be had here; set {name}='steps' and {steps}, or 'no'"
        )


def _reference(config: TrainingConfig) -> dict[str, Any]:
    if not config.has_reference:
        return {}
    own: ReferenceConfig = config  # type: ignore[assignment]
    syncing = {
        name: getattr(own, name) for name in ("ref_model_mixup_alpha", "ref_model_sync_steps")
    }
    if not own.sync_ref_model:
        for name, value in syncing.items():
            if value != type(own).model_fields[name].default:
                raise ConfigError(f"{name} has no effect by itself; set sync_ref_model=True")
        return {"reference": "cache"} if own.precompute_ref_log_probs else {}
    if own.precompute_ref_log_probs:
        raise ConfigError(
            "sync_ref_model and precompute_ref_log_probs exclude each other; drop one of them"
        )
    return {"sync_ref_model": True, **syncing}
