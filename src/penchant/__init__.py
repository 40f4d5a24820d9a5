"""Penchant: preference tuning of language models, quick and checked.

>>> import penchant
>>> result = penchant.train("dpo", model="my-model", data="pairs.jsonl", output="run")
>>> penchant.evaluate(model="run", data="held-out.jsonl").accuracy
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penchant.advising import advise
    from penchant.commands.benchmark import benchmark
    from penchant.commands.check import check
    from penchant.commands.check_result import CheckResult
    from penchant.commands.compare import compare
    from penchant.commands.comparison import Comparison
    from penchant.commands.evaluate import evaluate
    from penchant.commands.sweep import SweepResult, sweep
    from penchant.commands.train import train
    from penchant.commands.win_rate import win_rate
    from penchant.core.evaluation import Evaluation
    from penchant.methods import METHODS
    from penchant.reporting import report
    from penchant.training.result import TrainResult

# Huge pages for PyTorch's large tensors on Linux CPUs: less memory lost to fragmentation and
# fewer page faults. PyTorch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# PEFT imports bitsandbytes wherever it is installed, which then speaks of kernels it does without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

try:
    __version__ = version("penchant")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "METHODS",
    "CheckResult",
    "Comparison",
    "Evaluation",
    "SweepResult",
    "TrainResult",
    "advise",
    "benchmark",
    "check",
    "compare",
    "evaluate",
    "report",
    "sweep",
    "train",
    "win_rate",
]

_HOMES = {
    "METHODS": "penchant.methods",
    "CheckResult": "penchant.commands.check_result",
    "Comparison": "penchant.commands.comparison",
    "Evaluation": "penchant.core.evaluation",
    "SweepResult": "penchant.commands.sweep",
    "TrainResult": "penchant.training.result",
    "advise": "penchant.advising",
    "benchmark": "penchant.commands.benchmark",
    "check": "penchant.commands.check",
    "compare": "penchant.commands.compare",
    "evaluate": "penchant.commands.evaluate",
    "report": "penchant.reporting",
    "sweep": "penchant.commands.sweep",
    "train": "penchant.commands.train",
    "win_rate": "penchant.commands.win_rate",
}

# Modules that are used as `penchant.data.inspect` and `penchant.compat.trl`.
_ROOMS = ("compat", "data")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import: it waits until something needs it.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(f"penchant.{name}")
    raise AttributeError(f"module 'penchant' has no attribute {name!r}")
