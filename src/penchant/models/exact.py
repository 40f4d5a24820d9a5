"""Passes of a model in half precision, made in fp32, to see what rounding does to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from penchant.core.machine import USABLE, memory_available_bytes
from penchant.models.linear import MULTIPLIED

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.scoring import Scorer

logger = logging.getLogger("penchant")

HALF = (torch.bfloat16, torch.float16)


def exactly(scorer: Scorer, compute: Callable[[], Tensor], how: str) -> Tensor | None:
    """What a scorer in half precision computes, in fp32.

    None where fp32 cannot be had: weights that are codes of numbers, memory that does not hold it,
    a kernel that does not run in it.

    Args:
        scorer: whose weights are widened.
        compute: runs its passes.
        how: they are made, for people.
    """
    if not _can_be_exact(scorer):
        return None
    try:
        with in_fp32(scorer):
            return compute()
    except torch.OutOfMemoryError as error:  # the run itself needs less: half as much a weight
        logger.warning(
            "memory ran out while layouts were compared in fp32 (%s): they are compared in half "
            "precision alone, where less is told apart",
            error,
        )
        return None
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        # What fails in half precision too is reported there.
        logger.info("not compared in fp32 (%s): %s", how, error)
        return None


def _can_be_exact(scorer: Scorer) -> bool:
    """Whether all weights are numbers, for whose fp32 copies there is memory."""
    weights = list(scorer.parameters())
    if not all(type(w) is nn.Parameter and w.dtype in MULTIPLIED for w in weights):
        return False
    needed = sum(4 * w.numel() for w in weights if w.dtype in HALF)
    return needed < USABLE * memory_available_bytes(scorer.device)


@contextmanager
def in_fp32(scorer: Scorer) -> Iterator[None]:
    """Compute in fp32 for a while: weights of half precision are widened, autocast is off."""
    device = scorer.device.type
    halves = [t for t in (*scorer.parameters(), *scorer.buffers()) if t.dtype in HALF]
    before = [t.data for t in halves]
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for tensor in halves:
            tensor.data = tensor.data.float()
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for tensor, data in zip(halves, before, strict=True):
            tensor.data = data
        torch.set_float32_matmul_precision(products)
