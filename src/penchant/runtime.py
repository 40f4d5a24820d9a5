"""The machine: memory, versions, seeds, and how long things take on a screen."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import platform
import resource
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from rich.logging import RichHandler

from penchant.errors import ConfigError, TrainingError
from penchant.screen import console as console
from penchant.screen import track as track

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config import RunConfig

# Large enough that mapping costs little beside what is computed on it, small enough for a layer's
# activations of a few hundred tokens.
MAPPED_BYTES = 1_500_000
_M_MMAP_THRESHOLD = -3

PACKAGES = ("penchant", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def setup_logging() -> None:
    """Penchant's own messages to the screen, everybody else's only from errors up."""
    handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    logger = logging.getLogger("penchant")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

    # PEFT calls an old name of a transformers property: nothing a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def memory_peak_bytes(device: torch.device) -> int:
    """Peak of the GPU's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_available_bytes(device: torch.device) -> int:
    """What could be allocated now without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def map_large_blocks() -> None:
    """Let every block above `MAPPED_BYTES` be a mapping of its own, which freeing hands back.

    Otherwise the C library raises that bound by itself and keeps what was freed, in holes that the
    next phase's tensors do not fit in: sampling, scoring and training have different shapes.
    """
    _c_library("mallopt", _M_MMAP_THRESHOLD, MAPPED_BYTES)


def release_memory() -> None:
    """Hand freed memory back to the system, between phases of a run."""
    _c_library("malloc_trim", 0)


def _c_library(function: str, *arguments: int) -> None:
    """Call a function that only glibc has."""
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), function, None)
        if found is not None:
            found(*arguments)


def resolve_precision(wanted: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; auto is bf16 on a GPU that has it.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU; set precision to auto, bf16 or fp32")
    if wanted != "auto":
        return wanted
    return (
        "bf16"
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else "fp32"
    )


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
    found = resolve_precision(precision, Accelerator().device)
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(found, found),
        log_with=list(trackers) or None,
        project_dir=None if folder is None else str(folder),
    )


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


def versions() -> dict[str, str]:
    """Of everything whose version could change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
