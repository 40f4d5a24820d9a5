"""`penchant.advise`: which method, with which settings, for these data on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.data.opening import path_names

if TYPE_CHECKING:
    from penchant.advising.advice import Advice

__all__ = ["advise"]


def advise(
    *,
    data: Any,
    model: str | Path,
    memory: str | None = None,
    goal: str = "balanced",
    reward: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | str | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Advice:
    """Look at data, model and machine, and recommend a method, its settings and the command.

    The model's weights are not loaded.

    Args:
        data: pairs, labels or prompts, in any form that training reads.
        model: a run directory, a folder, a hub id, a .gguf file, or an adapter.
        memory: what training may use, such as 24GiB; default: what is free on this machine.
        split, columns: as for training: which split to take, and the data's names of columns.
        goal: balanced, memory, noise, length, simple or reward.
        reward: what judges sampled answers, where data are prompts.
        max_length, max_prompt_length: in tokens; default: what covers 99% of the records.
        chat_template: a Jinja file or chatml, in place of the model's template.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: an impossible argument, data or a model that cannot be read, no method that
            could train on these data.
    """
    from penchant.advising.advice import make_advice

    keys = {
        "model": str(model),
        "data": path_names(data) or ["DATA.jsonl"],
        "split": split if split != "train" else None,
        "columns": columns,
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "chat_template": chat_template,
        "trust_remote_code": trust_remote_code or None,
    }
    given = {name: value for name, value in keys.items() if value is not None}
    return make_advice(data, given, memory=memory, goal=goal, reward=reward)
