"""Accelerate, made for a run's precision and trackers."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import sys
import time
import weakref
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
# How long threads of gloo may take to let go of their tensors.
REST_SECONDS = 10.0


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
    console.quiet = not found.is_main_process  # what all processes find is told once
    resolved = resolve_precision(precision, found.device)
    AcceleratorState._reset_state()
    atexit.register(_disconnect)
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


def _disconnect() -> None:
    """Leave the process group, which all runs of a process share, when the process ends."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and not _fails_alone():
        distributed.destroy_process_group()
        let_gloo_rest()


def _leave_at_once() -> None:
    """End a process that leaves no process group, before Python takes it apart."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and _fails_alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


# Finalizers run from the newest to the oldest: folders that a run has made are removed before this.
weakref.finalize(_disconnect, _leave_at_once)


def _fails_alone() -> bool:
    """Whether an error of this process ends it, of which the others may not know."""
    from torch import distributed

    return would_wait(distributed.get_backend(), getattr(sys, "last_value", None))


def would_wait(backend: str, error: BaseException | None) -> bool:
    """Whether to leave the process group could take for ever, as others are in a collective.

    Args:
        backend: of the group; that of NCCL ends with the others.
        error: that ends this process. After an interruption all of them leave.
    """
    return "nccl" in backend and isinstance(error, Exception)


def let_gloo_rest() -> None:
    """Wait until no thread of gloo has anything to do, where the system tells (Linux).

    A collective comes back before gloo's thread has let go of its tensors, for which the thread
    takes Python's lock: where Python ends in between, the process is aborted, as if its run had
    failed (https://github.com/pytorch/pytorch/issues/190489). Meshes outlive the process group,
    and so do these threads.
    """
    deadline = time.monotonic() + REST_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.01)  # without the lock
        if not any(map(_is_working_gloo, Path("/proc/self/task").glob("*/stat"))):
            break


def _is_working_gloo(stat: Path) -> bool:
    try:
        name, _, state = stat.read_text().partition("(")[2].rpartition(") ")
    except OSError:  # the thread has ended
        return False
    return name.startswith("pt_gloo") and not state.startswith("S")
