"""How a saved model is loaded elsewhere: a line for transformers, for PEFT and for vLLM."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

# The ranks that vLLM makes room for.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def how_to_load(folder: Path, *, name: str | None = None) -> dict[str, str]:
    """The line that loads a saved model, by the library.

    Args:
        folder: with a model, or with an adapter.
        name: what the lines call it; default: the folder.
    """
    called = str(folder) if name is None else name
    adapter = _settings(folder / "adapter_config.json")
    if adapter is None:
        return _whole(called, scores=_scores(_settings(folder / "config.json") or {}))
    head = "SequenceClassification" if adapter.get("task_type") == "SEQ_CLS" else "CausalLM"
    lines = {
        "transformers": f'AutoModelFor{head}.from_pretrained("{called}")',
        "PEFT": f'AutoPeftModelFor{head}.from_pretrained("{called}")',
    }
    if head == "CausalLM":
        base = shlex.quote(str(adapter.get("base_model_name_or_path")))
        rank = int(adapter.get("r") or VLLM_RANKS[0])
        room = next((one for one in VLLM_RANKS if one >= rank), rank)
        lines["vLLM"] = (
            f"vllm serve {base} --enable-lora --max-lora-rank {room} "
            f"--lora-modules {shlex.quote(f'tuned={called}')}"
        )
    else:  # vLLM serves no adapter of a model that scores
        lines["vLLM"] = f"penchant merge {shlex.quote(called)}, and vllm serve what it writes"
    return lines


def _whole(called: str, *, scores: bool) -> dict[str, str]:
    head = "SequenceClassification" if scores else "CausalLM"
    pooling = " --runner pooling" if scores else ""
    return {
        "transformers": f'AutoModelFor{head}.from_pretrained("{called}")',
        "vLLM": f"vllm serve {shlex.quote(called)}{pooling}",
    }


def _scores(settings: dict[str, Any]) -> bool:
    return any("ForSequenceClassification" in one for one in settings.get("architectures") or ())


def _settings(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
