"""Accelerate, made for a run's precision and trackers."""

from __future__ import annotations

import atexit
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.core.errors import ConfigError, TrainingError
from penchant.core.machine import resolve_precision

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig


def make_accelerator(
    precision: str, *, trackers: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Accelerate with a precision (`auto` too) and trackers, which write to `folder`.

    Raises:
        ConfigError: a tracker is not installed, or the device lacks the precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"report_to: {', '.join(missing)} is not installed; pip install it")
    AcceleratorState._reset_state()  # it is a process-wide singleton; runs may follow each other
    resolved = resolve_precision(precision, Accelerator().device)
    AcceleratorState._reset_state()
    atexit.register(_disconnect)
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(resolved, resolved),
        log_with=list(trackers) or None,
        project_dir=None if folder is None else str(folder),
    )


def _disconnect() -> None:
    """Leave the process group, which all runs of a process share, when the process ends."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def end_trackers(accelerator: Accelerator) -> None:
    """Let the trackers finish; the processes stay connected, for runs that follow."""
    for tracker in accelerator.trackers:
        tracker.finish()


def start_trackers(accelerator: Accelerator, config: RunConfig) -> None:
    """Let the trackers write, now that the run has its folder.

    Raises:
        TrainingError: one cannot be started; what it says is passed on.
    """
    if config.trackers:
        scalars = {k: v for k, v in config.flat().items() if isinstance(v, int | float | str)}
        name = config.output.resolve().name
        named = {
            "wandb": {"name": name},
            "trackio": {"name": name, "resume": "allow" if config.resume else "never"},
            "mlflow": {"run_name": name},
        }
        try:
            accelerator.init_trackers("penchant", config=scalars, init_kwargs=named)
        except Exception as error:  # each has its own kinds
            raise TrainingError(
                f"report_to {config.report_to}: a tracker could not be started: "
                f"{type(error).__name__}: {error}; put that right or leave the tracker out, "
                "and run again with --resume"
            ) from error
