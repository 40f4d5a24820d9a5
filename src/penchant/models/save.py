"""Saving: a folder that any tool can load, written whole or not at all."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from penchant.core.team import ALONE, Team

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    merged: bool,
    records: Sequence[Sequence[int]] = (),
    team: Team = ALONE,
) -> None:
    """Write a model or adapter with its tokenizer.

    Args:
        model: a transformers model, or one with a PEFT adapter, in its own attention.
        tokenizer: saved beside it.
        folder: replaced in one move.
        merged: add the adapter to the weights, in fp32: half precision would round it away. What
            was quantised becomes bf16.
        records: token ids of a few texts, of which what is merged must say the same.
        team: the processes that hold the weights; the leader writes.
    """
    weights = gathered_weights(model, keep=team.leads)
    if not team.leads:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    saved = _merged(model, records) if merged else model
    # Adapters of reward models may stand on the same weights.
    adapted = isinstance(saved, PeftModel)
    own: dict[str, Any] = {"selected_adapters": saved.active_adapters} if adapted else {}
    if adapted and (start := getattr(saved, "start_folder", None)):
        # It stands on weights that it has taken something out of: nobody else has these.
        own["path_initial_model_for_weight_conversion"] = start
    saved.save_pretrained(partial, state_dict=weights, **own)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def gathered_weights(model: Any, *, keep: bool) -> dict[str, torch.Tensor] | None:
    """The weights to save, of a model of which each process holds a part; None: they are whole.

    Args:
        model: of an adapter, what was added alone.
        keep: whether this process keeps them; every process calls it.
    """
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return None
    from penchant.models.sharding import gathered

    weights = model.state_dict(keep_vars=True)
    if isinstance(model, PeftModel):  # the base is saved already
        # Biases are trained in the base itself.
        added = (".lora_", ".modules_to_save.", ".trainable_tokens_")
        own = [n for n, w in weights.items() if w.requires_grad or any(a in n for a in added)]
        weights = {name: weights[name] for name in own}
    return gathered(weights, keep=keep)


def _merged(model: Any, records: Sequence[Sequence[int]]) -> Any:
    from penchant.models.merging import merge_adapter

    if getattr(model.get_base_model(), "quantization_method", None) is not None:
        # Their errors are far above what bf16 rounds away.
        return merge_adapter(model, records, torch.bfloat16)
    device = next(model.parameters()).device
    twin = copy.deepcopy(model.to("cpu"))
    model.to(device)
    return merge_adapter(twin.to(torch.float32), records)
