"""From TRL's arguments to the keys of a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from penchant.compat.trl.arguments import Refusals
from penchant.config.sections import ModelSection
from penchant.config.values import joined
from penchant.core.errors import ConfigError

# TRL's argument: our key.
KEYS = {
    "output_dir": "output",
    "overwrite_output_dir": "overwrite",
    **{
        name: name
        for name in (
            *("seed", "trust_remote_code", "max_length", "max_prompt_length"),
            *("learning_rate", "num_train_epochs", "lr_scheduler_type", "weight_decay"),
            *("per_device_train_batch_size", "gradient_accumulation_steps"),
            *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
            "router_aux_loss_coef",
            *("per_device_eval_batch_size", "eval_on_start", "logging_steps"),
            "load_best_model_at_end",
        )
    },
}
# Of transformers' optimizers those that can be had, by their names and by ours.
OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "muon": "muon",
    "sgd": "sgd",
}
# `epoch`, like a share of the run, is a number of steps that is known once the data are tokenised.
STRATEGIES = ("no", "steps", "epoch")
NEVER = sys.maxsize
BEST = ("eval_rewards/accuracies", "rewards/accuracies", "eval_accuracy", "accuracy", "eval_reward")


def translate(arguments: Mapping[str, Any], refusals: Refusals) -> dict[str, Any]:
    """The keys that TRL's arguments come to; what cannot be had is gathered."""
    keys: dict[str, Any] = {
        **{key: arguments[name] for name, key in KEYS.items() if name in arguments},
        "report_to": joined(arguments["report_to"] or "none"),
        "max_steps": None if arguments["max_steps"] < 0 else arguments["max_steps"],
        "gradient_checkpointing": _switch(arguments["gradient_checkpointing"]),
        "eval_samples": 3 if arguments.get("generate_during_eval") else 0,
        "chat_template_kwargs": arguments.get("chat_template_kwargs") or {},
        "monitor_prompts": 0,  # TRL's logs have nothing of the kind
    }
    for part in (_device, _optimizer, _precision, _warmup, _shuffle, _evaluation, _best, _saving,
                 _reference):  # fmt: skip
        with refusals.gathering():
            keys |= part(arguments)
    return keys


def counted_keys(arguments: Mapping[str, Any], in_epoch: int, in_run: int) -> dict[str, int]:
    """The keys of what is done once an epoch, or after a share of the run, as numbers of steps.

    Args:
        arguments: TRL's.
        in_epoch, in_run: steps of an epoch and of the whole run.
    """
    keys = {}
    for key in ("eval_steps", "save_steps"):
        strategy, steps = arguments[key.replace("steps", "strategy")], arguments[key]
        if strategy == "epoch":
            keys[key] = in_epoch
        elif strategy == "steps" and steps is not None and steps < 1:
            keys[key] = math.ceil(in_run * steps)
    return keys


def _switch(value: bool | None) -> str:
    return "auto" if value is None else "on" if value else "off"


def _device(arguments: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    if arguments["use_cpu"] and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ConfigError(
            "use_cpu=True cannot be had here: set the environment variable CUDA_VISIBLE_DEVICES "
            "to nothing"
        )
    return {}


def _optimizer(arguments: Mapping[str, Any]) -> dict[str, Any]:
    name = arguments["optim"]
    if name not in OPTIMIZERS:
        raise ConfigError(f"optim={name!r} cannot be had here; set {', '.join(OPTIMIZERS)}")
    return {"optim": OPTIMIZERS[name]}


def _shuffle(arguments: Mapping[str, Any]) -> dict[str, Any]:
    strategy = arguments["train_sampling_strategy"]
    if strategy not in ("random", "sequential"):
        raise ConfigError(
            f"train_sampling_strategy={strategy!r} cannot be had here; set random or sequential"
        )
    return {"shuffle": strategy == "random" and arguments.get("shuffle_dataset") is not False}


def _precision(arguments: Mapping[str, Any]) -> dict[str, Any]:
    bf16, fp16 = arguments["bf16"], arguments["fp16"]
    if fp16 and bf16:
        raise ConfigError("bf16 and fp16 exclude each other; drop one of them")
    return {"precision": "fp16" if fp16 else {True: "bf16", False: "fp32", None: "auto"}[bf16]}


def _warmup(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"warmup_ratio": _warmup_ratio(arguments)}


def _warmup_ratio(arguments: Mapping[str, Any]) -> float:
    steps, ratio, max_steps = (
        arguments[name] for name in ("warmup_steps", "warmup_ratio", "max_steps")
    )
    if not steps:
        return float(ratio or 0.0)
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
    strategy, steps = arguments["eval_strategy"], arguments["eval_steps"]
    _require_strategy("eval_strategy", strategy)
    if strategy == "no":
        if steps is not None:
            raise ConfigError("eval_steps has no effect by itself; set eval_strategy='steps'")
        return {}
    if strategy == "epoch":
        return {"eval_steps": NEVER}
    return {"eval_steps": arguments["logging_steps"] if steps is None else _steps("eval", steps)}


def _best(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if not arguments["load_best_model_at_end"]:
        return {}
    if arguments["eval_strategy"] == "no":
        raise ConfigError(
            "load_best_model_at_end needs evaluations to choose from; set eval_strategy='steps'"
        )
    metric = arguments["metric_for_best_model"]
    if metric not in (None, *BEST) or arguments["greater_is_better"] is False:
        raise ConfigError(
            f"metric_for_best_model={metric!r} cannot be had here: the best evaluation is that of "
            "the highest held-out accuracy, then margin; drop it and greater_is_better"
        )
    return {}


def _saving(arguments: Mapping[str, Any]) -> dict[str, Any]:
    strategy, limit = arguments["save_strategy"], arguments["save_total_limit"]
    _require_strategy("save_strategy", strategy)
    return {
        "save_steps": _steps("save", arguments["save_steps"]) if strategy == "steps" else NEVER,
        "save_total_limit": NEVER if limit is None else limit,
    }


def _steps(what: str, steps: float) -> int:
    """A number of steps; a share of the run becomes one once its steps are known."""
    if 0 < steps < 1:
        return NEVER
    if steps < 1 or steps != int(steps):
        raise ConfigError(
            f"{what}_steps must be a number of steps, or a share of them below 1, got {steps}; "
            f"set {what}_steps"
        )
    return int(steps)


def _require_strategy(name: str, value: str) -> None:
    if value not in STRATEGIES:
        raise ConfigError(f"{name}={value!r} cannot be had here; set {', '.join(STRATEGIES)}")


def _reference(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if "sync_ref_model" not in arguments:
        return {}
    precompute = arguments.get("precompute_ref_log_probs", False)
    syncing = {name: arguments[name] for name in ("ref_model_mixup_alpha", "ref_model_sync_steps")}
    if not arguments["sync_ref_model"]:
        for name, value in syncing.items():
            if value != ModelSection.model_fields[name].default:
                raise ConfigError(f"{name} has no effect by itself; set sync_ref_model=True")
        return {}
    if precompute:
        raise ConfigError(
            "sync_ref_model and precompute_ref_log_probs exclude each other; drop one of them"
        )
    return {"sync_ref_model": True, **syncing}
