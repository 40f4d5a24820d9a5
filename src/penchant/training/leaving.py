"""How a process of several leaves the group that all runs of it share, when it ends."""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from functools import cache
from pathlib import Path

# How long threads of gloo may take to let go of their tensors.
REST_SECONDS = 10.0


@cache
def leave_at_the_end() -> None:
    """Have this process leave its group when it ends, or end at once where that would wait.

    Finalizers run from the newest to the oldest: folders that a run makes after this call are
    removed before it.
    """
    atexit.register(_disconnect)
    weakref.finalize(_disconnect, _leave_at_once)


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
