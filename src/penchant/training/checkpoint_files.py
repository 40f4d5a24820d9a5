"""Writing the files of a checkpoint: torch.distributed.checkpoint's, in safetensors.

Every process writes its part of every tensor into files of its own. A checkpoint is written beside
its name and moved there whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.atomic import flush_to_disk
from penchant.models.memory import own_part

if TYPE_CHECKING:
    from penchant.core.team import Team

MANIFEST, RECORD = "manifest.json", "state.json"
# A file is serialised in memory before it is written: many of moderate size need less than one.
FILE_BYTES, NUM_FILES = 1 << 26, 32


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    team: Team,
) -> None:
    """Write `folder/step-N` so that it is there whole or not at all; every process calls it.

    Args:
        folder: of all checkpoints of a run.
        step: whose state it is.
        tensors: by name. Of a sharded tensor each process writes its part, any other is written by
            one of the processes that name it.
        record: what else is restored, as JSON.
        team: the processes of the run.

    Raises:
        TrainingError: the disk is full; earlier checkpoints are untouched.
    """
    target, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    try:
        if team.leads:
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob(".step-*.partial"):  # a killed run's, of any step
                shutil.rmtree(unfinished)
        team.wait()
        _write_tensors(partial, tensors, team)
        own = partial.glob(f"shard-{team.rank + 1:05}-*.safetensors")
        digests = {n: d for some in team.gather(_digests(own)) for n, d in some.items()}
        if team.leads:
            # A best loss of infinity is restored as that: strict JSON would make it null, which no
            # comparison takes. Only this file's own reader reads it.
            (partial / RECORD).write_text(json.dumps(record))
            digests |= _digests([partial / RECORD])
            (partial / MANIFEST).write_text(json.dumps(digests))
            for file in (partial / RECORD, partial / MANIFEST):
                flush_to_disk(file)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            flush_to_disk(folder)
    except Exception as error:
        if team.leads:
            shutil.rmtree(partial, ignore_errors=True)
        from penchant.training.failing import is_disk_full, unsaved

        if not is_disk_full(error):
            raise
        raise unsaved(step, folder, checkpoint_steps(folder)) from error
    team.wait()  # none goes on with steps that a failed write would lose


def _write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], team: Team) -> None:
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_file_numbers(tensors), save_distributed=True
    )
    # Its copies from a device run ahead only into pinned memory, which it does not take.
    writer.per_thread_copy_ahead = 0
    planner = DefaultSavePlanner(flatten_state_dict=False)
    dense = {n: t if own_part(t).is_contiguous() else t.contiguous() for n, t in tensors.items()}
    with plain_errors():
        save(dense, storage_writer=writer, planner=planner, no_dist=team.size == 1)


def _file_numbers(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The number of the file, from 1, that holds each tensor, or this process's part of it."""
    sizes = {name: own_part(tensor).nbytes for name, tensor in tensors.items()}
    limit = max(FILE_BYTES, sum(sizes.values()) // NUM_FILES)
    numbers, number, filled = {}, 1, 0
    for name, size in sizes.items():
        if filled and filled + size > limit:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + size
    return numbers


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the first error of any process as it was, in place of torch's collection of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            # A single process is meant where it is one.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as collected:
        rank = min(collected.failures)
        raise collected.failures[rank][0] from collected


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first; other files may lie beside them."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def remove_checkpoint(folder: Path, step: int) -> None:
    """Remove one checkpoint, and the folder when it was the only one."""
    shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def drop_unasked(folder: Path, step: int, save_steps: int) -> None:
    """Remove the last checkpoint of a complete run, unless its step is one to save at."""
    if step % save_steps:
        remove_checkpoint(folder, step)


def prune_checkpoints(folder: Path, *, step: int, keep_newest: int, keep: set[int]) -> None:
    """Remove all but the newest `keep_newest` up to `step` and those in `keep`.

    Later ones do not count: they are unsound, or the run would have resumed from them.
    """
    reached = [saved for saved in checkpoint_steps(folder) if saved <= step]
    for saved in reached[:-keep_newest]:
        if saved not in keep:
            shutil.rmtree(folder / f"step-{saved}")


def _digests(files: Any) -> dict[str, str]:
    return {file.name: digest_of(file) for file in files}


def digest_of(file: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
