"""Where training would run: the machine that a plan or a forecast is made for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from penchant.core.errors import ConfigError
from penchant.core.machine import USABLE, memory_available_bytes, resolve_precision

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
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?\s*", str(text).lower())
    if not match or float(match[1]) == 0:
        raise ConfigError(
            f"memory must be a size with its unit, such as 24GiB or 16GB, got {text!r}; set memory"
        )
    return int(float(match[1]) * (1024 if match[3] else 1000) ** UNITS[match[2]])


def find_machine(memory_bytes: int | None) -> Machine:
    """The device of this machine, with the memory given or what is free."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Machine(
        device=device.type,
        memory_bytes=memory_available_bytes(device) if memory_bytes is None else memory_bytes,
        given=memory_bytes is not None,
        precision=resolve_precision("auto", device),
    )
