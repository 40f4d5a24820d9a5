"""From TRL's arguments to the keys of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from penchant.config.keys import RunConfig, load_config
from penchant.config.sections import ModelSection
from penchant.core.errors import ConfigError
from penchant.methods import METHODS

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


def run_config(
    method: str,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any],
    keys: Mapping[str, Any],
) -> RunConfig:
    """The configuration of a run.

    Args:
        method, options: that the arguments come to.
        arguments: TRL's, with their values.
        keys: what the arguments do not tell: the model, the data, LoRA.

    Raises:
        ConfigError: an argument that cannot have its effect, or a wrong value.
    """
    told = {
        **{key: arguments[name] for name, key in KEYS.items()},
        "report_to": _trackers(arguments["report_to"]),
        "max_steps": None if arguments["max_steps"] < 0 else arguments["max_steps"],
        "warmup_ratio": _warmup_ratio(arguments),
        "precision": _precision(arguments["bf16"], arguments["fp16"]),
        "gradient_checkpointing": _switch(arguments["gradient_checkpointing"]),
        "shuffle": _shuffle(arguments["train_sampling_strategy"]),
        "eval_samples": 3 if arguments["generate_during_eval"] else 0,
        "monitor_prompts": 0,  # TRL's logs have nothing of the kind
        **_evaluation(arguments),
        **_saving(arguments),
        **_reference(arguments),
        "unpair": METHODS[method].data == "labels",
        **options,
    }
    try:
        return load_config(method, {**told, **keys})
    except ConfigError as error:
        if told.get("reference") == "cache" and "cache" in str(error):
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


def _precision(bf16: bool | None, fp16: bool) -> str:
    if fp16 and bf16:
        raise ConfigError("bf16 and fp16 exclude each other; drop one of them")
    return "fp16" if fp16 else {True: "bf16", False: "fp32", None: "auto"}[bf16]


def _warmup_ratio(arguments: Mapping[str, Any]) -> float:
    steps, ratio, max_steps = (
        arguments[name] for name in ("warmup_steps", "warmup_ratio", "max_steps")
    )
    if not steps:
        return float(ratio)
    if ratio:
        raise ConfigError("warmup_steps and warmup_ratio exclude each other; drop one of them")
    if 0 < steps < 1:  # transformers 5 takes a share of the steps here
        return float(steps)
    if steps < 0 or steps != int(steps):
        raise ConfigError(f"warmup_steps must be a number of steps, got {steps}; set warmup_steps")
    if max_steps < 0:
        raise ConfigError("warmup_steps needs max_steps; set it, or warmup_ratio instead")
    if steps >= max_steps:
        raise ConfigError(
            f"warmup_steps ({steps:g}) must be below max_steps ({max_steps}); lower it"
        )
    return float((steps - 0.5) / max_steps)  # the engine rounds up


def _evaluation(arguments: Mapping[str, Any]) -> dict[str, Any]:
    _require_strategy("eval_strategy", arguments["eval_strategy"], "eval_steps")
    if arguments["eval_strategy"] == "no":
        if arguments["eval_steps"] is not None:
            raise ConfigError("eval_steps has no effect by itself; set eval_strategy='steps'")
        if arguments["load_best_model_at_end"]:
            raise ConfigError(
                "load_best_model_at_end needs evaluations to choose from; set eval_strategy='steps'"
            )
        return {}
    return {"eval_steps": arguments["eval_steps"] or arguments["logging_steps"]}


def _saving(arguments: Mapping[str, Any]) -> dict[str, Any]:
    _require_strategy("save_strategy", arguments["save_strategy"], "save_steps")
    limit = arguments["save_total_limit"]
    return {
        "save_steps": arguments["save_steps"] if arguments["save_strategy"] == "steps" else NEVER,
        "save_total_limit": NEVER if limit is None else limit,
    }


def _require_strategy(name: str, value: str, steps: str) -> None:
    if value not in STRATEGIES:
        raise ConfigError(
            f"{name}={value!r} cannot be had here; set {name}='steps' and {steps}, or 'no'"
        )


def _reference(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if "sync_ref_model" not in arguments:
        return {}
    precompute = arguments.get("precompute_ref_log_probs", False)
    syncing = {name: arguments[name] for name in ("ref_model_mixup_alpha", "ref_model_sync_steps")}
    if not arguments["sync_ref_model"]:
        for name, value in syncing.items():
            if value != ModelSection.model_fields[name].default:
                raise ConfigError(f"{name} has no effect by itself; set sync_ref_model=True")
        return {"reference": "cache"} if precompute else {}
    if precompute:
        raise ConfigError(
            "sync_ref_model and precompute_ref_log_probs exclude each other; drop one of them"
        )
    return {"sync_ref_model": True, **syncing}
