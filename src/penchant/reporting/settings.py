"""A run as others repeat it: settings, the command that runs it again, what loads its model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.config.sections import RECORDED, SECTIONS
from penchant.methods import METHODS
from penchant.reporting.reading import Run

# Where a run is written, and whether it goes on, says nothing of what it is.
NOT_SETTINGS = {"method", "resume", *RECORDED}


def settings(run: Run) -> dict[str, Any]:
    """The keys of a run that are settings."""
    return {key: value for key, value in run.config.items() if key not in NOT_SETTINGS}


def changed(run: Run) -> dict[str, Any]:
    """Those that differ from their defaults; of an unknown method or key, all."""
    models = [*SECTIONS, *([METHODS[run.method].options] if run.method in METHODS else [])]
    fields = {name: field for model in models for name, field in model.model_fields.items()}

    def differs(key: str, value: Any) -> bool:
        if key not in fields or fields[key].is_required():
            return True
        default = fields[key].get_default(call_default_factory=True)
        return _plain(value) != _plain(default)

    return {key: value for key, value in settings(run).items() if differs(key, value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def command(run: Run) -> str:
    """The command line that runs it again, one key a line; empty where it cannot be told."""
    if not run.method:
        return ""
    keys = {**changed(run), "output": "RUN"}
    words = [f"penchant train {run.method}"]
    for key in ("model", "data", *sorted(keys.keys() - {"model", "data"})):
        for value in _values(keys.get(key)):
            words.append(f"--{key} {shlex.quote(value)}")
    return " \\\n  ".join(words)


def _values(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        from penchant.data.columns import written

        return [written(value)]
    if isinstance(value, list | tuple):
        return [str(one) for one in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def caveats(run: Run) -> list[str]:
    """Why the command alone may not give the same run."""
    sentences = []
    if str(run.config.get("data", "")).startswith("<"):
        sentences.append(
            "the data was an object in Python: save it to a file, and give that as data"
        )
    processes = run.config.get("num_processes")
    if isinstance(processes, int) and processes > 1:
        sentences.append(f"it ran on {processes} processes: start it with accelerate launch")
    prints = run.config.get("data_fingerprints")
    if isinstance(prints, list) and prints:
        sentences.append(f"the data's fingerprints: {', '.join(map(str, prints))}")
    return sentences


def versions(run: Run) -> Mapping[str, Any]:
    """Versions of the libraries, as the run recorded them."""
    by_package = run.config.get("versions") or (run.summary or {}).get("versions")
    return by_package if isinstance(by_package, dict) else {}


# How its model is loaded elsewhere

# The ranks that vLLM makes room for.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def how_to_load(
    folder: Path, *, name: str | None = None, base: str | None = None
) -> dict[str, str]:
    """The line that loads a saved model, by the library.

    Args:
        folder: with a model, or with an adapter.
        name: what the lines call it; default: the folder.
        base: of an adapter; default: the one that it names.
    """
    called = str(folder) if name is None else name
    adapter = _read_settings(folder / "adapter_config.json")
    if adapter is None:
        return _whole(called, scores=_scores(_read_settings(folder / "config.json") or {}))
    head = "SequenceClassification" if adapter.get("task_type") == "SEQ_CLS" else "CausalLM"
    # The base of a reward adapter says nothing of one score, and two is the usual number.
    given = f'"{called}"' + (", num_labels=1" if head == "SequenceClassification" else "")
    lines = {
        "transformers": f"AutoModelFor{head}.from_pretrained({given})",
        "PEFT": f"AutoPeftModelFor{head}.from_pretrained({given})",
    }
    if head == "CausalLM":
        base = shlex.quote(base or str(adapter.get("base_model_name_or_path")))
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


def _read_settings(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
