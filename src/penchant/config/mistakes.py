"""What to say about a key or a value that is wrong: the nearest right one, and what to set."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from penchant.methods import METHODS

# Keys of methods that sample, and what serves the same purpose where nothing is sampled.
OFFLINE_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "max_completion_length": "max_length",
    "total_episodes": "max_steps",
}
REMOVED_NAMES = {"ref_model": "reference_model", "output_dir": "output", "lr": "learning_rate"}


def unknown_key(name: object, method: str, known: Iterable[str]) -> str:
    """What to say about a key that `method` does not have; a file's may be any YAML."""
    key = str(name)
    owners = [name for name, other in METHODS.items() if key in other.options.model_fields]
    if owners:
        some = ", ".join(owners[:3]) + (" and others" if len(owners) > 3 else "")
        instead = OFFLINE_NAMES.get(key)
        remedy = f"set {instead} instead" if instead else "drop it"
        return f"{key} is an option of {some}, not of {method}; {remedy}"
    renamed = REMOVED_NAMES.get(key)
    hint = f"did you mean {renamed}?" if renamed else nearest(key, known)
    return f"unknown key {key!r}; {hint}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A question for the nearest of the known words, or else all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def explain(problem: Any) -> str:
    """An error of pydantic's as a sentence."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{key} is required; set {key}"
    message = message.removeprefix("Input ")
    return f"{key} {message}, got {problem['input']!r}; set {key}"
