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
from safetensors import SafetensorError

from penchant.core.errors import TrainingError
from penchant.training import checkpoint
from penchant.training.checkpoint import (
    MANIFEST,
    TrainingState,
    checkpoint_steps,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    save_checkpoint,
)


def state(step: int, numbers: int = 8) -> TrainingState:
    return TrainingState(
        step=step,
        weights={"w": torch.full((numbers,), float(step))},
        optimizer={"w/exp_avg": torch.full((numbers,), -float(step)), "w/step": torch.tensor(3.0)},
        random={"cpu": torch.get_rng_state()},
        extra={"progress": {"step": step, "best": [0.5, 0.1]}, "scaler": None},
    )


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved = state(4)
    save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path, 4)
    assert (loaded.step, loaded.extra) == (4, saved.extra)
    for part in ("weights", "optimizer", "random"):
        before, after = getattr(saved, part), getattr(loaded, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_numbers_that_are_not_finite_are_resumed_as_they_were(tmp_path: Path) -> None:
    saved = state(4)
    saved.extra["progress"]["best"] = [math.inf, -math.inf]
    saved.extra["scaler"] = {"scale": math.nan}
    save_checkpoint(tmp_path, saved)
    extra = load_checkpoint(tmp_path, 4).extra
    assert extra["progress"]["best"] == [math.inf, -math.inf]
    assert math.isnan(extra["scaler"]["scale"])


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(4))
    save_checkpoint(tmp_path, state(4, numbers=16))
    assert load_checkpoint(tmp_path, 4).weights["w"].shape == (16,)


def truncate(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated weights": truncate,
    "one bit of the moments": flip_a_bit,
    "no weights": lambda folder: (folder / "weights.safetensors").unlink(),
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
    monkeypatch.setattr(checkpoint.logger, "propagate", True)
    for step in (2, 10):  # as text, 10 comes before 2
        save_checkpoint(tmp_path, state(step))
    DAMAGE[damage](tmp_path / "step-10")
    with pytest.raises(TrainingError, match="step-10"):
        load_checkpoint(tmp_path, 10)
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 2
    (warning,) = {record.getMessage() for record in caplog.records}
    assert "step-10" in warning
    assert "trying the one before" in warning


def test_without_a_sound_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent") is None
    save_checkpoint(tmp_path, state(1))
    truncate(tmp_path / "step-1")
    assert load_newest(tmp_path) is None


def test_half_written_checkpoint_is_not_seen_and_is_written_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(2))
    partial = tmp_path / ".step-4.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 2
    save_checkpoint(tmp_path, state(4))
    assert load_checkpoint(tmp_path, 4).step == 4
    assert not partial.exists()


def test_newest_and_wanted_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        save_checkpoint(tmp_path, state(step))
    prune_checkpoints(tmp_path, step=10, keep_newest=2, keep={4})
    assert checkpoint_steps(tmp_path) == [4, 8, 10]


def test_checkpoints_that_the_run_has_yet_to_reach_again_push_out_none(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save_checkpoint(tmp_path, state(step))
    prune_checkpoints(tmp_path, step=4, keep_newest=1, keep=set())
    assert checkpoint_steps(tmp_path) == [4, 6, 8]


def refused(folder: Path, too_big: TrainingState) -> str:
    """Save what cannot be saved; returns the message, with everything else checked."""
    with pytest.raises(TrainingError) as caught:
        save_checkpoint(folder, too_big)
    told = str(caught.value)
    assert "the disk is full" in told
    assert "--resume" in told
    assert checkpoint_steps(folder) == [2]
    assert not list(folder.glob(".*"))  # the half of it is gone
    assert torch.equal(load_checkpoint(folder, 2).weights["w"], state(2).weights["w"])
    return told


FULL = {
    "by number": OSError(errno.ENOSPC, "No space left on device"),
    "over quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    # safetensors hides the number in the text of an error of its own
    "by text": SafetensorError("Error while serializing: I/O error: os error 28"),
}


@pytest.mark.parametrize("reported", FULL)
def test_full_disk_leaves_earlier_checkpoints_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: str
) -> None:
    save_checkpoint(tmp_path, state(2))

    def fail(*_: Any) -> None:
        raise FULL[reported]

    monkeypatch.setattr(checkpoint, "save_file", fail)
    told = refused(tmp_path, state(4))
    assert "step-4 could not be written" in told
    assert "intact: step-2" in told


def test_other_failures_are_not_called_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save_checkpoint(tmp_path, state(4))


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
    save_checkpoint(small_disk / "checkpoints", state(2))
    refused(small_disk / "checkpoints", state(4, numbers=1_000_000))
