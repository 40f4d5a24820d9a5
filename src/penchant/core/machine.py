"""The machine: its device, precision and memory, and the versions of what runs on it."""

from __future__ import annotations

import ctypes
import platform
import re
import resource
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from penchant.core.errors import ConfigError

# Large enough that mapping costs little beside what is computed on it, small enough for a layer's
# activations of a few hundred tokens.
MAPPED_BYTES = 1_500_000
_M_MMAP_THRESHOLD = -3

PACKAGES = ("penchant", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


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


def versions() -> dict[str, str]:
    """Of everything whose version could change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


USABLE = 0.85  # of the memory: allocators fragment


UNITS = {"": 1, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Machine:
    """Where training would run.

    Attributes:
        device: cpu or cuda, as found here.
        memory_bytes: given, or free now.
        given: whether the user said so.
        precision: of the arithmetic.
    """

    device: str
    memory_bytes: int
    given: bool
    precision: str

    @property
    def usable_bytes(self) -> float:
        """What a plan may take."""
        return USABLE * self.memory_bytes


def parse_memory(text: str) -> int:
    """Bytes of a size such as 24GiB (powers of 1024) or 16GB (of 1000).

    Raises:
        ConfigError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?\s*", str(text).lower())
    if not found or float(found[1]) == 0:
        raise ConfigError(
            f"memory must be a size with its unit, such as 24GiB or 16GB, got {text!r}; set memory"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2]])


def find_machine(memory_bytes: int | None) -> Machine:
    """The device of this machine, with the memory given or what is free."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Machine(
        device=device.type,
        memory_bytes=memory_available_bytes(device) if memory_bytes is None else memory_bytes,
        given=memory_bytes is not None,
        precision=resolve_precision("auto", device),
    )
