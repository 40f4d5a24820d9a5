"""How long the processes of a run wait for each other."""

from __future__ import annotations

import os
from datetime import timedelta

from penchant.core.errors import ConfigError

# Seconds: longer than one of them waits for a server that is gone, which is at fault then, and so
# short that a run that hangs does not hold its GPUs for days.
PATIENCE = 7200.0
NAME = "PENCHANT_PROCESS_TIMEOUT"


def patience() -> timedelta:
    """How long a process waits for the others.

    Raises:
        ConfigError: the environment says something else than a positive number of seconds.
    """
    told = os.environ.get(NAME) or PATIENCE
    try:
        waited = timedelta(seconds=float(told))
    except (ValueError, OverflowError):
        waited = timedelta(0)
    if waited <= timedelta(0):
        raise ConfigError(f"{NAME} must be a number of seconds above 0, got {told}")
    return waited
