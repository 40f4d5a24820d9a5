"""How matrices are multiplied in fp32 on this CPU: the fastest way, measured once and kept.

MKL multiplies as torch's own linear layer does, or with the weights as the first factor, of which
it then copies less before it multiplies; oneDNN has kernels of its own. Which is fastest depends on
the processor, on the rows and on the width.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
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

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias` with oneDNN's kernel."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def weights_first(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias` as the transpose of `weight x^T`, with MKL."""
    turned = x.flatten(0, -2).t()
    added = None if bias is None else bias.unsqueeze(1)
    out = weight @ turned if added is None else torch.addmm(added, weight, turned)
    return out.t().reshape(*x.shape[:-1], len(weight))


OWN, WEIGHTS_FIRST = "MKL", "MKL, weights first"
WAYS: dict[str, Product] = {
    OWN: functional.linear,
    WEIGHTS_FIRST: weights_first,
    "oneDNN": onednn,
}
"""By name, torch's own first."""


@dataclass(frozen=True)
class Kind:
    """Products that are measured together.

    Attributes:
        rows: that the probe multiplies.
        weights: `[out, in]` of each that it multiplies by, in turn; together they are more than a
            cache holds, as those of a model are.
        backward: whether it multiplies from the other side too. Such rows are many: to turn their
            products costs more than the other order of the factors saves, which is left out.
    """

    rows: int
    weights: tuple[tuple[int, int], ...]
    backward: bool


# Two layers of a small model, and a chunk of its head. All together take two seconds.
LAYERS = ((1536, 576), (576, 1536))
KINDS = {
    "a few rows": Kind(4, 8 * LAYERS, backward=False),
    "rows of sampling": Kind(16, 8 * LAYERS, backward=False),
    "rows of passes": Kind(256, 3 * LAYERS, backward=True),
    "vocabulary": Kind(128, 2 * ((8192, 576),), backward=True),
}
A_FEW, SAMPLING = 8, 64
"""The most rows of the first two kinds."""
ROUNDS = 9
# A busy machine takes many times as long; then fewer rounds decide.
FEWEST_ROUNDS, SECONDS = 3, 0.5
# A way must gain this much over torch's own, so that noise does not decide between equals.
LEAST_GAIN = 1.05

_measured: dict[str, str] = {}


def faster_way(rows: int, *, vocabulary: bool = False) -> Product | None:
    """What is to multiply so many rows, measured when first asked; None for torch's own layer."""
    if not has_onednn():
        return None
    if not _measured:
        _measured.update(_kept_choice())
    way = _measured[_kind(rows, vocabulary=vocabulary)]
    return None if way == OWN else WAYS[way]


def _kind(rows: int, *, vocabulary: bool) -> str:
    if vocabulary:
        return "vocabulary"
    if rows <= A_FEW:
        return "a few rows"
    return "rows of sampling" if rows <= SAMPLING else "rows of passes"


def measured_products() -> dict[str, str]:
    """The way for each kind of product, for the summary; empty where nothing was chosen."""
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
    name = xxhash.xxh3_64_hexdigest(f"{_machine()}: {list(WAYS)} of {KINDS}".encode())
    path = default_cache_dir() / "products" / f"{name}.json"
    try:
        if not path.exists():
            _keep(measure(), path)
        choice: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["choice"]
        if unknown := {choice[kind] for kind in KINDS} - WAYS.keys():
            raise ValueError(f"{', '.join(sorted(unknown))} is no way to multiply")
        return choice
    except (OSError, ValueError, KeyError) as error:
        logger.warning(
            "the fastest way to multiply is measured at every start, for %s cannot be kept: %s; "
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
    """The fastest way for each kind of product."""
    return {name: _fastest(kind) for name, kind in KINDS.items()}


@torch.no_grad()
def _fastest(kind: Kind) -> str:
    weights = [torch.ones(shape) for shape in kind.weights]
    inputs = [torch.ones(kind.rows, len(weight.t())) for weight in weights]
    ways = {
        name: way for name, way in WAYS.items() if not (kind.backward and name == WEIGHTS_FIRST)
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    started_all = time.perf_counter()
    for turn in range(ROUNDS + 1):
        if turn > FEWEST_ROUNDS and time.perf_counter() - started_all > SECONDS:
            break
        for name, way in ways.items():
            started = time.perf_counter()
            for x, weight in zip(inputs, weights, strict=True):
                out = way(x, weight, None)
                if kind.backward:
                    way(out, weight.t(), None)
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - started)
    best = min(seconds, key=lambda name: median(seconds[name]))
    gain = median(seconds[OWN]) / median(seconds[best])
    return best if gain >= LEAST_GAIN else OWN
