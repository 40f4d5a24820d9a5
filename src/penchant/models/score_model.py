"""Models that score text: a reward model from its files, or a language model with a new head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ModelError
from penchant.models.architecture import (
    read_config,
    require_whole,
    score_class,
    scoring_architecture,
)
from penchant.models.load import (
    adapter_base,
    adapter_settings,
    from_pretrained,
    is_adapter,
    load_causal_model,
    require_kept,
    with_adapter,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from penchant.models.quantised import Quantization


def load_score_model(
    name: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    keep_adapter: bool = False,
    quantization: Quantization | None = None,
) -> PreTrainedModel | PeftModel:
    """A model with a scalar head on the CPU: a reward model, or a language model with a new head.

    A new head is random: seed torch before.

    Args:
        name, dtype, trust_remote_code, keep_adapter, quantization: as for `load_causal_model`.

    Raises:
        ModelError: nothing there, or a head with several labels.
    """
    if is_adapter(Path(name)):
        if adapter_settings(name).get("task_type") != "SEQ_CLS":
            require_kept(name, False, quantization)
            return _with_new_head(
                load_causal_model(name, dtype=dtype, trust_remote_code=trust_remote_code)
            )
        base = load_score_model(
            adapter_base(name),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            quantization=require_kept(name, keep_adapter, quantization),
        )
        return with_adapter(base, name, keep=keep_adapter)
    config = read_config(name, trust_remote_code)
    factory = score_class(config, name, trust_remote_code)
    options = {} if quantization is None else quantization.arguments()
    if not scoring_architecture(config):
        options["num_labels"] = 1
        model, missing = from_pretrained(factory, name, dtype, trust_remote_code, **options)
        require_whole(model, {key for key in missing if not key.startswith("score.")}, name)
        return model
    model, missing = from_pretrained(factory, name, dtype, trust_remote_code, **options)
    if model.config.num_labels != 1:
        raise ModelError(
            f"{name} has {model.config.num_labels} labels; a reward model has one, the score"
        )
    require_whole(model, missing, name)
    return model


def _with_new_head(model: Any) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    factory = score_class(config, config.name_or_path, trust_remote_code=False)
    scored: Any = factory(config).to(model.dtype)
    scored.base_model.load_state_dict(model.base_model.state_dict())
    return scored.eval()


def is_score_model(name: str) -> bool:
    """Whether a resolved name is a folder with a reward model or its adapter."""
    if is_adapter(Path(name)):
        return adapter_settings(name).get("task_type") == "SEQ_CLS"
    if not (Path(name) / "config.json").exists():
        return False
    return scoring_architecture(read_config(name, trust_remote_code=False)) is not None
