"""How long things take on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import TypeVar

import torch

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """How long a call takes, the device's queue included, and what it returns."""
    synchronize(device)
    started = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - started, result


@cache
def bf16_slowdown() -> float | None:
    """How many times as long a product takes in bf16 as in fp32; None where no CPU computes it.

    Above 1 on a CPU that emulates bf16 because it has no instructions for it, else below 1.
    """
    if torch.accelerator.is_available():
        return None

    def best(dtype: torch.dtype) -> float:
        rows, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        product = partial(torch.nn.functional.linear, rows, weight)
        return min(seconds_of(product, rows.device)[0] for _ in range(4))  # the first warms up

    return best(torch.bfloat16) / best(torch.float32)
