"""The machine: its device, precision and memory, and the versions of what runs on it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from penchant.core.errors import ConfigError, TrainingError
from penchant.core.team import launched_here

# Large enough that mapping costs little beside what is computed on it, small enough for a layer's
# activations of a few hundred tokens.
MAPPED_BYTES = 1_500_000
_M_MMAP_THRESHOLD = -3
# Elements between the beginnings of tensors that travel together.
ALIGNED = 16

PACKAGES = ("penchant", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def default_cache_dir() -> Path:
    """Where what is made once is kept: PENCHANT_CACHE or ~/.cache/penchant."""
    return Path(os.environ.get("PENCHANT_CACHE") or Path.home() / ".cache" / "penchant")


def memory_peak_bytes(device: torch.device) -> int:
    """Peak of the GPU's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_available_bytes(device: torch.device) -> int:
    """What could be allocated now without swapping; the processes on a machine share its memory.

    On a GPU the allocator keeps what was freed: that can be had again, though the driver calls it
    used.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available // launched_here()


@dataclass(frozen=True)
class Room:
    """The memory that a run finds, in bytes.

    Attributes:
        held: by the process now; on a GPU by its tensors.
        available: what may still be allocated; total: all that the device has.
        peak: of the process so far.
    """

    held: float
    available: float
    total: float
    peak: float = 0.0

    @property
    def limit(self) -> float:
        """What the run may come to, with room for fragmentation."""
        return self.held + USABLE * self.available


def find_room(device: torch.device) -> Room:
    """The memory of a device, after what was freed is handed back."""
    release_memory()
    if device.type == "cuda":
        held = float(torch.cuda.memory_allocated(device))
    else:
        held = float(psutil.Process().memory_info().rss)
    return Room(
        held, memory_available_bytes(device), memory_total_bytes(device), memory_peak_bytes(device)
    )


def memory_total_bytes(device: torch.device) -> int:
    """All that the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return psutil.virtual_memory().total


def widest(device: torch.device) -> torch.dtype:
    """The floating dtype with the most digits that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Tensors of the CPU on a device; a GPU gets those of one dtype in one copy.

    The host does not wait for that copy: it is made from pinned memory, in the device's own order.
    """
    if device.type != "cuda":
        return [tensor.to(device, non_blocking=True) for tensor in tensors]
    moved: list[torch.Tensor] = list(tensors)
    for dtype in {tensor.dtype for tensor in tensors}:
        numbers = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        # Kernels read several elements at once, from addresses that are multiples of their size.
        sizes = [-(-tensors[i].numel() // ALIGNED) * ALIGNED for i in numbers]
        joined = torch.zeros(sum(sizes), dtype=dtype)
        for i, part in zip(numbers, joined.split(sizes), strict=True):
            part[: tensors[i].numel()] = tensors[i].flatten()
        there = joined.pin_memory().to(device, non_blocking=True)
        for i, part in zip(numbers, there.split(sizes), strict=True):
            moved[i] = part[: tensors[i].numel()].view(tensors[i].shape)
    return moved


def map_large_blocks() -> None:
    """Let every block above `MAPPED_BYTES` be a mapping of its own, which freeing hands back.

    Otherwise the C library raises that bound by itself and keeps what was freed, in holes that the
    next phase's tensors do not fit in: sampling, scoring and training have different shapes.
    """
    _c_library("mallopt", _M_MMAP_THRESHOLD, MAPPED_BYTES)


def release_memory() -> None:
    """Hand freed memory back to the system, between phases of a run."""
    _c_library("malloc_trim", 0)


@contextmanager
def out_of_memory_explained(doing: str, remedy: str | Callable[[], str]) -> Iterator[None]:
    """End with what to set where a device's memory runs out.

    Args:
        doing: what happens inside, in the past tense: "the models were loaded".
        remedy: what to set, or what tells it.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        told = remedy if isinstance(remedy, str) else remedy()
        raise TrainingError(f"out of memory while {doing}: {error}; {told}") from error


def _c_library(function: str, *arguments: int) -> None:
    """Call a function that only glibc has."""
    if sys.platform == "linux":
        entry = getattr(ctypes.CDLL(None), function, None)
        if entry is not None:
            entry(*arguments)


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


def versions() -> dict[str, str]:
    """Of everything whose version could change a result."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package


USABLE = 0.85  # of the memory: allocators fragment
