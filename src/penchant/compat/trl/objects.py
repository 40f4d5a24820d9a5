"""What a script passes to a trainer as objects: the model, its reference, LoRA, the tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError, ModelError
from penchant.models.locate import resolve

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from penchant.compat.trl.configs import TrainingConfig
    from penchant.config.keys import RunConfig

logger = logging.getLogger("penchant")

# Of a LoRA configuration: what has a key of its own, and what says nothing of training.
READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters", "task_type"}
INCIDENTAL = {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
HEADS = {"score", "classifier"}  # of a reward model: trained and saved as a whole anyway


def name_of(model: Any) -> str:
    """How a run calls a model that was passed as an object, or named."""
    if isinstance(model, str):
        return model
    return str(model.config._name_or_path or f"<{type(model).__name__}>")


def require_trainable(model: Any, *, scored: bool) -> None:
    """Refuse a model that the engine could not train as it is meant.

    Args:
        model: the object.
        scored: a reward model is wanted.

    Raises:
        ModelError: what it is instead.
    """
    require_plain(model, "model")
    classifies = "ForSequenceClassification" in type(model).__name__
    if scored and not classifies:
        raise ModelError(
            f"a reward model has a scalar head, got {type(model).__name__}; load it with "
            "AutoModelForSequenceClassification and num_labels=1"
        )
    if scored and model.config.num_labels != 1:
        raise ModelError(
            f"model has {model.config.num_labels} labels; a reward model has one, the score: load "
            "it with num_labels=1"
        )
    if not scored and (classifies or model.get_output_embeddings() is None):
        raise ModelError(
            f"{type(model).__name__} is no causal language model; load it with AutoModelForCausalLM"
        )


def require_plain(model: Any, argument: str) -> None:
    """Refuse what is no transformers model on one device with weights that can be trained."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    if isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{argument} has an adapter already; pass the plain model and peft_config, or what "
            "merge_and_unload() returns"
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{argument} must be a transformers model, got {type(model).__name__}")
    if model.config.is_encoder_decoder:
        raise ModelError(f"{argument} is an encoder and decoder; only decoders are trained")
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise ModelError(f"{argument} is spread over devices; load it without device_map")


INIT_KWARGS = ("dtype", "torch_dtype", "trust_remote_code", "quantization_config")


def quantization_settings(
    model: Any, init_kwargs: dict[str, Any] | None, given: Any, *, adapted: bool
) -> tuple[dict[str, Any], Any]:
    """How a model that is named is loaded: arguments of `from_pretrained`, and its quantisation.

    Args:
        model: as it was passed to the trainer.
        init_kwargs: the configuration's `model_init_kwargs`.
        given: the trainer's own `quantization_config`.
        adapted: whether an adapter is trained.

    Raises:
        ConfigError: one that cannot have its effect.
    """
    kwargs = dict(init_kwargs or {})
    if not isinstance(model, str) and (kwargs or given is not None):
        name = "quantization_config" if given is not None else "model_init_kwargs"
        raise ConfigError(f"{name} is for a model that is named; this one is loaded: drop it")
    if unknown := [name for name in kwargs if name not in INIT_KWARGS]:
        raise ConfigError(
            f"model_init_kwargs: {', '.join(unknown)} cannot be had here; load the model yourself "
            "and pass the object"
        )
    if given is not None and "quantization_config" in kwargs:
        raise ConfigError("quantization_config is in model_init_kwargs too; drop one of them")
    settings = kwargs.pop("quantization_config", None) or given
    if settings is not None and not adapted:
        raise ConfigError("quantization_config freezes the weights; pass peft_config to train LoRA")
    return kwargs, settings


def load_named(
    name: str, kwargs: dict[str, Any], settings: Any, config: RunConfig, device: Any
) -> Any:
    """Load a model that a script names with arguments of its own, in fp32 where they name no dtype.

    Args:
        name, kwargs, settings: as `quantization_settings` has found them good.
        config: of the run; device: of it.
    """
    import torch

    from penchant.core.machine import out_of_memory_explained
    from penchant.models.load import load_causal_model
    from penchant.models.quantised import Quantization, require_packages, saved_method
    from penchant.models.score_model import load_score_model

    if settings is not None:
        method = saved_method(SimpleNamespace(quantization_config=settings))
        require_packages(str(method), "quantization_config: the model")
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or torch.float32
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ConfigError("model_init_kwargs: dtype names no dtype of torch; set float32")
    load = load_score_model if config.spec.model == "score" else load_causal_model
    quantization = None if settings is None else Quantization(device=device, settings=settings)
    remedy = "set quantization_config with load_in_4bit, or a smaller model"
    with out_of_memory_explained("the model was loaded", remedy):
        return load(
            resolve(name, config.cache_dir),
            dtype=dtype,
            trust_remote_code=kwargs.get("trust_remote_code", config.trust_remote_code),
            quantization=quantization,
        )


def whole_weights(model: Any) -> Any:
    """The model with weights that training all of them can change by small steps."""
    import torch

    if model.dtype != torch.float32:
        logger.info(
            "the model's %s weights are trained in float32: small updates would round to nothing; "
            "bf16 and fp16 are of the arithmetic", str(model.dtype).removeprefix("torch."),
        )  # fmt: skip
        model.float()
    return model


def lora_keys(peft_config: Any, model: Any, *, scored: bool) -> dict[str, Any]:
    """The keys of an adapter.

    Args:
        peft_config: a `peft.LoraConfig`, or None to train all weights.
        model: an object or a name: without target_modules PEFT chooses by its architecture.
        scored: it is for a reward model.

    Raises:
        ConfigError: a setting that cannot have its effect.
    """
    from peft import LoraConfig

    if peft_config is None:
        return {"lora_r": 0}
    if type(peft_config) is not LoraConfig:
        raise ConfigError(
            f"peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}"
        )
    task = "SEQ_CLS" if scored else "CAUSAL_LM"
    if peft_config.task_type not in (None, task):
        raise ConfigError(f"peft_config: task_type is {peft_config.task_type}; set {task}")
    settings, usual = {}, LoraConfig()
    for one in fields(LoraConfig):
        value = getattr(peft_config, one.name)
        if one.name not in READ | INCIDENTAL and value != getattr(usual, one.name):
            settings[one.name] = _as_written(value)
    if scored and "modules_to_save" in settings:
        settings["modules_to_save"] = sorted({*settings["modules_to_save"]} - HEADS) or None
    return {
        "lora_r": peft_config.r,
        "lora_alpha": peft_config.lora_alpha,
        "lora_dropout": peft_config.lora_dropout,
        "lora_target_modules": _targets(peft_config.target_modules, model),
        "lora_target_parameters": peft_config.target_parameters or "",
        "peft": {name: value for name, value in settings.items() if value is not None},
    }


def _as_written(value: Any) -> Any:
    """A setting as a file can hold it: sets in order, configurations such as EVA's as mappings."""
    if isinstance(value, set):
        return sorted(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _targets(wanted: Any, model: Any) -> str | list[str]:
    if isinstance(wanted, str):  # all-linear, or a pattern
        return wanted
    return sorted(_usual_targets(model) if wanted is None else wanted)


def _usual_targets(model: Any) -> list[str]:
    """PEFT's own for an architecture, which are fewer than all."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve(model)) if isinstance(model, str) else model.config
    kind = config.model_type
    if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        raise ConfigError(f"peft_config: PEFT knows no layers of {kind}; set target_modules")
    return list(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind])


def padded(tokenizer: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer with a pad token, as TRL gives it one."""
    from transformers import PreTrainedTokenizerBase

    if tokenizer is None:
        return None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"processing_class must be a tokenizer, got {type(tokenizer).__name__}; models of text "
            "alone are trained"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def disable_dropout(model: nn.Module, *, lora: bool = False) -> None:
    """Switch the model's own dropout off; LoRA's stays unless `lora` says otherwise."""
    from torch import nn

    for name, module in model.named_modules():
        if ".lora_dropout" in name and not lora:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def one_of(name: str, value: Any, other_name: str, other: Any) -> Any:
    """An argument that has two names, of which one may be given."""
    if value is not None and other is not None:
        raise ConfigError(f"{name} and {other_name} are the same argument; drop one of them")
    return other if value is None else value


def require_model(model: Any, *, scored: bool) -> None:
    """Refuse what is no model, or one that could not be trained."""
    if model is None:
        raise ConfigError("a trainer needs a model; set model")
    if not isinstance(model, str):
        require_trainable(model, scored=scored)


def require_data(train_dataset: Any, eval_dataset: Any, args: TrainingConfig) -> None:
    """Refuse data that are missing, or are several data sets."""
    if train_dataset is None:
        raise ConfigError("a trainer needs data; set train_dataset")
    for name, value in {"train_dataset": train_dataset, "eval_dataset": eval_dataset}.items():
        if isinstance(value, Mapping):
            raise ConfigError(f"{name} holds several data sets; give one")
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ConfigError("eval_strategy needs held-out data; set eval_dataset")
