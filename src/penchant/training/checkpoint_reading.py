"""Reading a checkpoint: each of any number of processes reads what it needs, once that is sound."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.errors import TrainingError
from penchant.training.checkpoint_files import (
    MANIFEST,
    RECORD,
    checkpoint_steps,
    digest_of,
    plain_errors,
)

if TYPE_CHECKING:
    from penchant.core.team import Team

logger = logging.getLogger("penchant")

# Of an older version, whose first process wrote all tensors.
GATHERED = "weights.safetensors"


class UnsoundCheckpointError(TrainingError):
    """A file of a checkpoint is missing or is not what was written."""


def newest_checkpoint(folder: Path, team: Team) -> tuple[int, dict[str, Any]] | None:
    """The step and the record of the newest sound checkpoint; says which others are passed over.

    Every process calls it.
    """
    for step in reversed(team.agree(checkpoint_steps(folder))):
        try:
            return step, verify_checkpoint(folder, step, team)
        except UnsoundCheckpointError as error:
            logger.warning("%s; trying the one before it", error)
    return None


def verify_checkpoint(folder: Path, step: int, team: Team) -> dict[str, Any]:
    """Compare the files of a checkpoint with what was written, each process its share of them.

    Returns:
        The record that was saved with the tensors.

    Raises:
        UnsoundCheckpointError: a file is missing or is not what was written.
        TrainingError: an older version of Penchant wrote it.
    """
    source = folder / f"step-{step}"
    problem: TrainingError | None = None
    try:
        digests = _read_manifest(source)
        for name in team.share(sorted(digests)):
            if digest_of(source / name) != digests[name]:
                raise UnsoundCheckpointError(f"checkpoint {source} is corrupt: {name} has changed")
    except TrainingError as error:
        problem = error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        problem = UnsoundCheckpointError(f"checkpoint {source} is incomplete: {error}")
    for found in team.gather(problem):
        if found is not None:
            raise found
    record: dict[str, Any] = json.loads((source / RECORD).read_text())
    return record


def _read_manifest(source: Path) -> dict[str, str]:
    digests: dict[str, str] = json.loads((source / MANIFEST).read_text())
    if GATHERED in digests:
        raise TrainingError(
            f"checkpoint {source} was written by an older version of penchant, whose checkpoints "
            "this one does not read; go on with that version, or begin again with --overwrite"
        )
    files = {file.name for file in source.glob("*.safetensors")}
    if RECORD not in digests or files != set(digests) - {RECORD}:
        raise UnsoundCheckpointError(
            f"checkpoint {source} is corrupt: {MANIFEST} names other files"
        )
    return digests


def fill(folder: Path, step: int, places: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors of a checkpoint into `places`, by name; of what is sharded, this process's part.

    Raises:
        RuntimeError: one of the names was not saved.
    """
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    planner = DefaultLoadPlanner(flatten_state_dict=False)
    reader = HuggingFaceStorageReader(str(folder / f"step-{step}"))
    with plain_errors():  # what a process reads concerns no other
        load(dict(places), storage_reader=reader, planner=planner, no_dist=True)


def saved_shapes(folder: Path, step: int) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name, shape and type of every tensor of a checkpoint."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    metadata = HuggingFaceStorageReader(str(folder / f"step-{step}")).read_metadata()
    every: dict[str, Any] = dict(metadata.state_dict_metadata)
    return {name: (one.size, one.properties.dtype) for name, one in every.items()}


def read_part(folder: Path, step: int, part: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `part/`, whole, by the rest of their names."""
    shapes = saved_shapes(folder, step)
    tensors = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in shapes.items()
        if name.startswith(f"{part}/")
    }
    fill(folder, step, tensors)
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items()}
