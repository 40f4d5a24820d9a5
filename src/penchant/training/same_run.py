"""Whether a folder holds the run that is to be resumed: which keys may differ, and which not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from penchant.core.errors import TrainingError

# Keys that may differ between a run and its resumption without changing its weights
# (but for rounding and the draws of dropout, where passes are divided by other budgets).
FREE_KEYS = {
    "output", "resume", "overwrite", "cache_dir", "token_cache", "report_to", "logging_steps",
    "save_steps", "save_minutes", "save_total_limit", "per_device_eval_batch_size",
    "eval_samples", "max_new_tokens", "merge", "strict", "silence", "max_tokens_per_batch",
    "sharding", "offload",
}  # fmt: skip

# Keys that may differ as long as their product, the examples of a step, does not.
STEP_KEYS = ("num_processes", "per_device_train_batch_size", "gradient_accumulation_steps")

# Keys that may grow on resuming: the run then goes further.
GROWING_KEYS = ("max_steps", "num_train_epochs")


def require_same(path: Path, now: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings.

    Args:
        path: its folder.
        now: the flat keys, with the data's fingerprints.

    Raises:
        TrainingError: it names what has changed.
    """
    before = _recorded(path)
    changed = [
        f"{key}: {before.get(key)!r} then, {value!r} now"
        for key, value in now.items()
        # A key that an older version did not have is as it was.
        if key in before and key not in {*FREE_KEYS, *STEP_KEYS, "versions"}
        if before[key] != value
        if not (key in GROWING_KEYS and _grown(key, before, now))
    ]
    was, is_now = _step_size(before), _step_size(now)
    if was != is_now and None not in (was, is_now):
        changed.append(f"examples of a step ({' x '.join(STEP_KEYS)}): {was} then, {is_now} now")
    if changed:
        raise TrainingError(
            f"{path} holds a run with other settings, which resuming cannot change "
            f"({'; '.join(changed)}); choose another output, or --overwrite without --resume"
        )


def _step_size(keys: Mapping[str, Any]) -> int | None:
    """Examples of an optimizer step; None where keys do not say."""
    sizes = [keys.get(key) for key in STEP_KEYS]
    return None if None in sizes else math.prod(int(size) for size in sizes if size is not None)


def goes_further(path: Path, now: Mapping[str, Any]) -> bool:
    """Whether a complete run in a folder is to go on, because a key has grown."""
    before = _recorded(path)
    return any(_grown(key, before, now) for key in GROWING_KEYS)


def _recorded(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))


def _grown(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    was, is_now = before.get(key), now.get(key)
    return was is not None and is_now is not None and is_now > was
