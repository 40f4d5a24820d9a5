"""The key `peft`: what `peft.LoraConfig` takes beside the flat keys, checked by PEFT itself."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from penchant.core.adapters import FROM_PASSES, TAKEN_OUT, changes_base
from penchant.core.errors import ConfigError
from penchant.data.named_words import parse_kwargs

# PEFT's name: the flat key.
FLAT = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
}
# What a run says itself.
OWN = {
    "task_type": "the method says it",
    "peft_type": "it is LORA",
    "inference_mode": "adapters are trained",
    "base_model_name_or_path": "set model",
    "revision": "set model",
    "auto_mapping": "PEFT fills it in",
    "peft_version": "PEFT fills it in",
}
# What PEFT does outside of the adapter's layers, where no run passes.
ELSEWHERE = {
    "alora_invocation_tokens": "its adapter begins at a place that PEFT looks for in padded rows",
    "arrow_config": "it combines adapters that are there already",
}


def spread(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a run with those of `peft` that have a flat name under it.

    Raises:
        ConfigError: no mapping, an unknown name, or one that says something else than its flat key.
    """
    try:
        settings = parse_kwargs(keys["peft"])
    except ValueError as error:
        raise ConfigError(f"peft: {error}; write use_dora=true or a JSON object") from None
    if not isinstance(settings, Mapping):
        raise ConfigError(f"peft must be a mapping, got {settings!r}; set peft")
    _require_known(settings)
    flat, rest = dict(keys), {}
    for name, value in settings.items():
        key = FLAT.get(name)
        if isinstance(value, set | frozenset | tuple):
            value = sorted(value) if isinstance(value, set | frozenset) else list(value)
        if key is None:
            rest[name] = value
        elif value is not None:
            other = flat.setdefault(key, value)
            if not _same(other, value):
                raise ConfigError(
                    f"peft says {name} {value!r} and {key} says {other!r}; drop one of them"
                )
    return {**flat, "peft": rest}


def _same(flat: Any, value: Any) -> bool:
    def plain(one: Any) -> str:
        parts = one if isinstance(one, list | tuple) else str(one).split(",")
        return ",".join(str(part).strip() for part in parts)

    return plain(flat) == plain(value) or str(flat) == str(value)


def _require_known(settings: Mapping[str, Any]) -> None:
    from peft import LoraConfig

    known = [field.name for field in fields(LoraConfig)]
    problems = []
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
            hint = f"nearest are {', '.join(near)}" if near else f"known are {', '.join(known)}"
            problems.append(f"peft: LoraConfig has no {name!r}; {hint}")
        elif name in OWN:
            problems.append(f"peft: {name} is not to be set ({OWN[name]}); drop it")
        elif name in ELSEWHERE and settings[name] is not None:
            problems.append(f"peft: {name} cannot be had here: {ELSEWHERE[name]}; drop it")
    if problems:
        raise ConfigError("\n".join(problems))


def check_peft(config: Any) -> None:
    """Refuse settings that PEFT would refuse, or that contradict the run.

    Args:
        config: a `RunConfig` with settings of PEFT.

    Raises:
        ValueError: which, and what to set.
    """
    from peft import LoraConfig

    settings = config.peft
    if not config.lora_r:
        raise ValueError("peft shapes an adapter, and lora_r 0 trains all weights; drop one")
    try:
        json.dumps(settings)
    except TypeError as error:
        raise ValueError(f"peft: {error}; give values that config.yaml can hold") from error
    initial = str(settings.get("init_lora_weights", True)).lower()
    if initial.startswith(TAKEN_OUT) and config.quantization != "none":
        raise ValueError(
            f"peft: init_lora_weights {initial} takes something out of the base, and quantization "
            f"{config.quantization} holds it in codes; set eva, or drop quantization"
        )
    if initial == "lora_ga" and config.spec.model == "score":
        raise ValueError(
            "peft: init_lora_weights lora_ga starts from gradients of a language model, and "
            f"{config.method} trains scores; set eva or corda"
        )
    try:
        LoraConfig(r=config.lora_r, **settings)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"peft: {error}") from error
    if changes_base(settings):
        _check_base(config)
    if config.sync_ref_model and settings.get("layer_replication"):
        raise ValueError(
            "sync_ref_model moves the weights of the reference towards the policy's, and peft "
            "(layer_replication) gives the policy layers that the reference lacks; drop one of them"
        )


def _check_base(config: Any) -> None:
    if config.reference == "adapter" or config.sync_ref_model or config.spec.samples:
        raise ValueError(
            "peft: with this bias or these init_lora_weights the model without its adapter is not "
            "the one that training starts from; set reference to copy or cache, use a method that "
            "does not sample, and drop sync_ref_model"
        )


def from_passes(settings: Mapping[str, Any]) -> bool:
    """Whether the adapter's initial weights are computed from passes over records."""
    return str(settings.get("init_lora_weights", True)).lower().startswith(FROM_PASSES)
