"""Adapters of other models, a reward's or a teacher's, on the policy's own frozen weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftConfig, PeftType
from peft.utils import load_peft_weights, set_peft_model_state_dict

from penchant.core.adapters import changed_by
from penchant.core.errors import ModelError
from penchant.models import attention
from penchant.models.locate import is_adapter, resolve
from penchant.models.lora import fuse_lora
from penchant.models.scoring import causal_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn

HEAD = ".score."


def why_apart(folder: str, policy: Any, base: str | None) -> str | None:
    """Why the adapter of a folder cannot live on the policy's weights, or None where it can.

    Args:
        folder: the resolved name of a model.
        policy: the policy's model under its adapter; None where it has none.
        base: the resolved name of what the policy's adapter stands on.
    """
    if policy is None or not is_adapter(Path(folder)):
        return "it is not an adapter beside an adapter"
    config = PeftConfig.from_pretrained(folder)
    if config.peft_type != PeftType.LORA:
        return f"it is a {config.peft_type} adapter, and only LoRA can share"
    if part := _in_base(config):
        return f"it changes its base ({part}), which the policy stands on too"
    other = resolve(str(config.base_model_name_or_path))
    if base is None or Path(other).resolve() != Path(base).resolve():
        return f"it was trained on {other}, and the policy on {base}"
    return None


def _in_base(config: Any) -> str:
    """The setting by which an adapter changes the weights or the layers that it stands on."""
    others = ("layer_replication", "trainable_token_indices")
    own = next((name for name in others if getattr(config, name, None)), "")
    return changed_by(vars(config)) or own


def free_name(policy: PeftModel, wanted: str) -> str:
    """A name that no adapter of the policy has: the one that is wanted, or a numbered one."""
    taken, number = policy.peft_config, 2
    name = wanted
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    return name


def load_beside(policy: PeftModel, folder: str, adapter: str) -> dict[str, Tensor]:
    """Put the adapter of a folder into the policy, frozen; returns the weights of its score head.

    Args:
        policy: within `restored`, so that nothing else of it changes.
        folder: a LoRA adapter of the same base.
        adapter: the name that it gets, which is free.

    Raises:
        ModelError: its weights do not fit the policy's model.
    """
    saved = PeftConfig.from_pretrained(folder)
    assert isinstance(saved, LoraConfig)
    # A score head is no part of a language model, so PEFT must not look for it there.
    config = dataclasses.replace(saved, task_type="CAUSAL_LM", modules_to_save=None)
    config.inference_mode = True
    weights = load_peft_weights(folder, device="cpu")
    head = {key: weights.pop(key) for key in list(weights) if HEAD in key}
    policy.add_adapter(adapter, config)
    fuse_lora(policy)
    result: Any = set_peft_model_state_dict(policy, weights, adapter_name=adapter)
    missing = [key for key in result.missing_keys if f".{adapter}." in key]
    if missing or result.unexpected_keys:
        policy.delete_adapter(adapter)
        wrong = [*missing, *result.unexpected_keys]
        raise ModelError(
            f"the adapter in {folder} does not fit the policy's model ({len(wrong)} weights, the "
            f"first {wrong[0]}); it must have been trained on the same base"
        )
    return head


def adapter_bytes(policy: PeftModel, adapter: str) -> int:
    """Memory of an adapter's weights."""
    own = [p for n, p in policy.named_parameters() if f".{adapter}." in n]
    return sum(p.numel() * p.element_size() for p in own)


@contextmanager
def restored(policy: PeftModel) -> Iterator[None]:
    """Leave the policy afterwards as it was, whatever is done to it meanwhile."""
    assert not any(_disabled(m) for m in policy.modules()), "the policy's adapter is switched off"
    model = causal_model(policy)
    active, way = policy.active_adapter, model.config._attn_implementation
    trains = [(p, p.requires_grad) for p in policy.parameters()]
    modes = [(module, module.training) for module in policy.modules()]
    if way == attention.NAME:
        # A scorer takes the way it finds for the model's own, which this one is not.
        model.set_attn_implementation(model.get_correct_attn_implementation(None))
    try:
        yield
    finally:
        policy.set_adapter(active)
        for parameter, trained in trains:
            parameter.requires_grad_(trained)
        for module, training in modes:
            module.training = training
        if model.config._attn_implementation != way:
            model.set_attn_implementation(way)


def _disabled(module: nn.Module) -> bool:
    return bool(getattr(module, "_disable_adapters", False))
