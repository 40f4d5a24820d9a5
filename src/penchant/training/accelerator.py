"""Accelerate, made for a run's precision and trackers."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penchant.core.errors import ConfigError
from penchant.core.machine import resolve_precision
from penchant.core.screen import console
from penchant.core.team import Team, launched

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import KwargsHandler

    from penchant.config.keys import RunConfig

logger = logging.getLogger("penchant")

# What the launcher asked for; its variable would make Accelerate and transformers shard as well.
_asked_for = {"fsdp": False}


def make_accelerator(
    precision: str, *, trackers: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Accelerate with a precision (`auto` too) and trackers, which write to `folder`.

    Raises:
        ConfigError: a tracker is not installed, the device lacks the precision, or the processes
            were launched in a way that cannot train.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if any(name.startswith(("ACCELERATE_USE_", "FSDP_")) for name in os.environ):
        from penchant.training.launches import asks_for_sharding

        _asked_for["fsdp"] |= asks_for_sharding()
    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"report_to: {', '.join(missing)} is not installed; pip install it")
    AcceleratorState._reset_state()  # it is a process-wide singleton; runs may follow each other
    size = launched().size
    handlers: list[KwargsHandler] = []
    if size > 1:
        from accelerate.utils import InitProcessGroupKwargs

        from penchant.core.patience import patience

        handlers = [InitProcessGroupKwargs(timeout=patience())]
    found = Accelerator(kwargs_handlers=handlers)
    if size > found.num_processes:
        from penchant.training.launches import apart

        raise apart(size, found.num_processes)
    if found.distributed_type != "NO":
        from penchant.training.leaving import leave_at_the_end

        leave_at_the_end()
    console.quiet = not found.is_main_process  # what all processes find is told once
    resolved = resolve_precision(precision, found.device)
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(resolved, resolved),
        log_with=list(trackers) or None,
        project_dir=None if folder is None else str(folder),
    )


def team_of(accelerator: Accelerator) -> Team:
    """The processes that Accelerate sees."""
    return Team(accelerator.process_index, accelerator.num_processes)


def sharding_of(config: RunConfig, accelerator: Accelerator) -> Literal["off", "full", "hybrid"]:
    """How the processes of a run divide the weights."""
    if config.sharding == "auto":
        return "full" if _asked_for["fsdp"] and accelerator.num_processes > 1 else "off"
    if config.sharding != "off" and accelerator.num_processes == 1:
        logger.info("sharding %s: one process holds all weights", config.sharding)
        return "off"
    return config.sharding
