"""Accelerate, made for a run's precision and trackers."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penchant.core.errors import ConfigError
from penchant.core.machine import resolve_precision
from penchant.core.screen import console
from penchant.core.team import Team

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig

logger = logging.getLogger("penchant")

OTHER_LAUNCHES = {
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "tensor or context parallelism",
}
# What the launcher asked for; its variable would make Accelerate and transformers shard as well.
_launched = {"fsdp": False}
# What launchers tell every process of how many there are.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def make_accelerator(
    precision: str, *, trackers: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Accelerate with a precision (`auto` too) and trackers, which write to `folder`.

    Raises:
        ConfigError: a tracker is not installed, the device lacks the precision, or the processes
            were launched in a way that cannot train.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    _refuse_other_launches()
    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"report_to: {', '.join(missing)} is not installed; pip install it")
    AcceleratorState._reset_state()  # it is a process-wide singleton; runs may follow each other
    found = Accelerator()
    _require_all_processes(found.num_processes)
    console.quiet = not found.is_main_process  # what all processes find is told once
    resolved = resolve_precision(precision, found.device)
    AcceleratorState._reset_state()
    atexit.register(_disconnect)
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(resolved, resolved),
        log_with=list(trackers) or None,
        project_dir=None if folder is None else str(folder),
    )


def team_of(accelerator: Accelerator) -> Team:
    """The processes that Accelerate sees."""
    return Team(accelerator.process_index, accelerator.num_processes)


def _refuse_other_launches() -> None:
    """Refuse what `accelerate launch` can ask for and training cannot do, by name."""
    for name in OTHER_LAUNCHES:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1"):
            raise ConfigError(
                f"the processes were launched with {OTHER_LAUNCHES[name]}, which is not supported; "
                "launch without it (accelerate launch --multi_gpu, or torchrun), and where a "
                "model does not fit one device, set sharding to full"
            )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() in ("true", "1"):
        raise ConfigError(
            "the processes were launched with FSDP that offloads weights to main memory; launch "
            "without fsdp_offload_params, and set sharding to full and offload to true"
        )
    if os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"):
        _launched["fsdp"] = True
        logger.info("launched with FSDP: sharding auto is full; its other settings are not read")


def sharding_of(config: RunConfig, accelerator: Accelerator) -> Literal["off", "full", "hybrid"]:
    """How the processes of a run divide the weights."""
    if config.sharding == "auto":
        return "full" if _launched["fsdp"] and accelerator.num_processes > 1 else "off"
    if config.sharding != "off" and accelerator.num_processes == 1:
        logger.info("sharding %s: one process holds all weights", config.sharding)
        return "off"
    return config.sharding


def _require_all_processes(num_processes: int) -> None:
    """Refuse processes that were launched together and do not see each other."""
    launched = max(int(os.environ.get(name) or 1) for name in WORLD_SIZES)
    if launched > num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but this one sees {num_processes}: each would "
            "train alone, in one folder; on a machine without a GPU set ACCELERATE_USE_CPU=true, "
            "or unset WORLD_SIZE where a single process is meant"
        )


def _disconnect() -> None:
    """Leave the process group, which all runs of a process share, when the process ends."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
