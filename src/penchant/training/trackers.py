"""The trackers of a run: started once it has its folder, finished when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from penchant.core.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig


@contextmanager
def tracked(accelerator: Accelerator, config: RunConfig) -> Iterator[None]:
    """Let the trackers write; the processes stay connected, for runs that follow.

    Raises:
        TrainingError: one cannot be started; what it says is passed on.
    """
    _start(accelerator, config)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _start(accelerator: Accelerator, config: RunConfig) -> None:
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
