"""Checkpoints: whole or not there, verified before use, the earlier ones safe."""

from __future__ import annotations

import errno
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem

from penchant.core.errors import TrainingError
from penchant.core.team import ALONE
from penchant.training import checkpoint_files, checkpoint_reading
from penchant.training.checkpoint_files import (
    MANIFEST,
    checkpoint_steps,
    prune_checkpoints,
    write_checkpoint,
)
from penchant.training.checkpoint_reading import (
    UnsoundCheckpointError,
    newest_checkpoint,
    read_part,
    verify_checkpoint,
)

RECORD = {"progress": {"best": [0.5, 0.1]}, "scaler": None}


def state(step: int, numbers: int = 8) -> dict[str, torch.Tensor]:
    return {
        "weights/w": torch.full((numbers,), float(step)),
        "weights/none": torch.zeros(0, 3, dtype=torch.bfloat16),
        "optimizer/w/exp_avg": torch.full((2, numbers), -float(step)).t(),  # its rows lie apart
        "optimizer/w/step": torch.tensor(3.0),
        "random/cpu": torch.get_rng_state(),
    }


def save(folder: Path, step: int, numbers: int = 8, record: Any = RECORD) -> None:
    write_checkpoint(folder, step, state(step, numbers), record, ALONE)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "FILE_BYTES", 64)
    expected = state(4)
    write_checkpoint(tmp_path, 4, expected, RECORD, ALONE)
    assert len(list((tmp_path / "step-4").glob("*.safetensors"))) == 2
    assert verify_checkpoint(tmp_path, 4, ALONE) == RECORD
    parts = ("weights", "optimizer", "random")
    found = {f"{p}/{n}": t for p in parts for n, t in read_part(tmp_path, 4, p).items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_numbers_that_are_not_finite_are_resumed_as_they_were(tmp_path: Path) -> None:
    save(tmp_path, 4, record={"best": [math.inf, -math.inf], "scale": math.nan})
    record = verify_checkpoint(tmp_path, 4, ALONE)
    assert record["best"] == [math.inf, -math.inf]
    assert math.isnan(record["scale"])


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-7.partial").mkdir()
    (tmp_path / ".step-7.partial" / "shard-00001.safetensors").write_bytes(b"half")
    save(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 4)
    save(tmp_path, 4, numbers=16)
    assert read_part(tmp_path, 4, "weights")["w"].shape == (16,)


def tensors_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def truncate(folder: Path) -> None:
    file = tensors_of(folder)
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    file = tensors_of(folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated tensors": truncate,
    "one bit of them": flip_a_bit,
    "no tensors": lambda folder: tensors_of(folder).unlink(),
    "tensors of another": lambda folder: shutil.copy(tensors_of(folder), folder / "o.safetensors"),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: (folder / MANIFEST).write_text('{"state.json": "'),
    "a manifest of noise": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\xfd"),
    "an empty manifest": lambda folder: (folder / MANIFEST).write_text("{}"),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "an empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_reading.logger, "propagate", True)
    for step in (2, 10):  # as text, 10 comes before 2
        save(tmp_path, step)
    DAMAGE[damage](tmp_path / "step-10")
    with pytest.raises(UnsoundCheckpointError, match="step-10"):
        verify_checkpoint(tmp_path, 10, ALONE)
    assert newest_checkpoint(tmp_path, ALONE) == (2, RECORD)
    (warning,) = {one.getMessage() for one in caplog.records if one.name == "penchant"}
    assert "step-10" in warning
    assert "trying the one before" in warning


def test_without_a_sound_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent", ALONE) is None
    save(tmp_path, 1)
    truncate(tmp_path / "step-1")
    assert newest_checkpoint(tmp_path, ALONE) is None


def test_checkpoint_of_an_older_version_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 2)
    older = tmp_path / "step-4"
    older.mkdir()
    (older / "weights.safetensors").write_bytes(b"whole")
    (older / MANIFEST).write_text('{"weights.safetensors": "a digest", "state.json": "another"}')
    with pytest.raises(TrainingError, match=r"step-4 was written by an older version.*--overwr"):
        newest_checkpoint(tmp_path, ALONE)


def test_half_written_checkpoint_is_not_seen_and_is_written_over(tmp_path: Path) -> None:
    save(tmp_path, 2)
    partial = tmp_path / ".step-4.partial"
    partial.mkdir()
    half = partial / "shard-00001-model-00009-of-00009.safetensors"
    half.write_bytes(b"half")
    assert newest_checkpoint(tmp_path, ALONE) == (2, RECORD)
    save(tmp_path, 4)
    assert newest_checkpoint(tmp_path, ALONE) == (4, RECORD)
    assert not (tmp_path / "step-4" / half.name).exists()
    assert not partial.exists()


def test_newest_and_wanted_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, step=10, keep_newest=2, keep={4})
    assert checkpoint_steps(tmp_path) == [4, 8, 10]


def test_checkpoints_that_the_run_has_yet_to_reach_again_push_out_none(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, step=4, keep_newest=1, keep=set())
    assert checkpoint_steps(tmp_path) == [4, 6, 8]


def refused(folder: Path, numbers: int) -> str:
    """Save what cannot be saved; returns the message, with everything else checked."""
    with pytest.raises(TrainingError) as caught:
        save(folder, 4, numbers)
    told = str(caught.value)
    assert "the disk is full" in told
    assert "--resume" in told
    assert checkpoint_steps(folder) == [2]
    assert not list(folder.glob(".*"))  # the half of it is gone
    assert torch.equal(read_part(folder, 2, "weights")["w"], state(2)["weights/w"])
    return told


FULL = {
    "by number": OSError(errno.ENOSPC, "No space left on device"),
    "over quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
}


@pytest.mark.parametrize("reported", FULL)
def test_full_disk_leaves_earlier_checkpoints_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: str
) -> None:
    save(tmp_path, 2)

    def fail(*_: Any) -> None:
        raise FULL[reported]

    monkeypatch.setattr(FileSystem, "create_stream", fail)
    told = refused(tmp_path, 8)
    assert "step-4 could not be written" in told
    assert "intact: step-2" in told


def test_other_failures_are_not_called_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FileSystem, "create_stream", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, text=True,
        capture_output=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_really_full_disk_leaves_earlier_checkpoints_and_says_so(small_disk: Path) -> None:
    save(small_disk / "checkpoints", 2)
    refused(small_disk / "checkpoints", 1_000_000)
