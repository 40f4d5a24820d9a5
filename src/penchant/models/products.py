"""Which library multiplies matrices in fp32 on this CPU: the faster one, measured once and kept."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median

import torch
import xxhash
from torch import Tensor
from torch.nn import functional

from penchant.core.atomic import write_atomically
from penchant.core.machine import default_cache_dir

logger = logging.getLogger("penchant")

# Products with at most this many rows are those of sampling.
FEW_ROWS = 32
# The probe multiplies by a layer of a small model: a fraction of a second in all.
IN_FEATURES, OUT_FEATURES, MANY_ROWS, ROUNDS = 576, 1536, 256, 15
# oneDNN must gain this much, so that noise does not decide between equals.
LEAST_GAIN = 1.05

Product = Callable[[Tensor, Tensor], Tensor]
_measured: dict[str, str] = {}


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias` with oneDNN's kernel."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def onednn_is_faster(rows: int) -> bool:
    """Whether oneDNN is to multiply this many rows; measured when first asked."""
    if not has_onednn():
        return False
    if not _measured:
        _measured.update(_kept_choice())
    return _measured["few rows" if rows <= FEW_ROWS else "many rows"] == "oneDNN"


def measured_products() -> dict[str, str]:
    """The library for few and for many rows, for the summary; empty where nothing was chosen."""
    return dict(_measured)


@cache
def has_onednn() -> bool:
    """Whether torch has oneDNN's products for this processor."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _kept_choice() -> dict[str, str]:
    """The choice in the cache, or one measured now: a resumed run multiplies as it began.

    Processes that measure side by side all take what the first one kept.
    """
    name = xxhash.xxh3_64_hexdigest(_machine().encode())
    path = default_cache_dir() / "products" / f"{name}.json"
    try:
        if not path.exists():
            _keep(measure(), path)
        choice: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["choice"]
        return {rows: choice[rows] for rows in ("many rows", "few rows")}
    except (OSError, ValueError, KeyError) as error:
        logger.warning(
            "the faster of oneDNN and MKL is measured at every start, for %s cannot be kept: %s; "
            "delete the file, or set PENCHANT_CACHE to a folder that can be written",
            path,
            error,
        )
        return measure()


def _keep(choice: dict[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}")
    write_atomically(own, json.dumps({"machine": _machine(), "choice": choice}))
    try:
        os.link(own, path)
    except FileExistsError:
        logger.debug("%s was written by another process", path)
    finally:
        own.unlink()


def _machine() -> str:
    """All that the choice depends on; processors of one name differ in their instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def measure() -> dict[str, str]:
    """The faster library for the passes of training and scoring, and for sampling's few rows."""
    return {
        "many rows": _faster(MANY_ROWS, backward=True),
        "few rows": _faster(FEW_ROWS // 2, backward=False),
    }


def _faster(rows: int, *, backward: bool) -> str:
    x = torch.ones(rows, IN_FEATURES)
    weight = torch.ones(OUT_FEATURES, IN_FEATURES)
    libraries: dict[str, Product] = {"MKL": functional.linear, "oneDNN": onednn}
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    with torch.no_grad():
        for turn in range(ROUNDS + 1):
            for name, product in libraries.items():
                started = time.perf_counter()
                out = product(x, weight)
                if backward:
                    product(out, weight.t())
                if turn:  # the first compiles
                    seconds[name].append(time.perf_counter() - started)
    gain = median(seconds["MKL"]) / median(seconds["oneDNN"])
    return "oneDNN" if gain >= LEAST_GAIN else "MKL"
