"""Checkpoints: written beside their name and moved there whole, verified before they are used."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from penchant.core.atomic import flush_to_disk
from penchant.core.errors import TrainingError
from penchant.core.team import Team
from penchant.training.optimizer import (
    load_optimizer,
    optimizer_tensors,
    placed,
    random_states,
    schedule_state,
    set_random_states,
    set_rates,
)

if TYPE_CHECKING:
    from penchant.data.source import Source
    from penchant.models.reference import KeptSums
    from penchant.training.step import Step

logger = logging.getLogger("penchant")

MANIFEST = "manifest.json"
FILES = {"weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"}
# Only of sources and references that have something to keep.
SOURCE, REFERENCE = "source.safetensors", "reference.safetensors"


@dataclass
class TrainingState:
    """Everything that a run needs to go on: weights and moments by parameter name."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    random: dict[str, torch.Tensor]
    extra: dict[str, Any]
    """JSON: the schedule, the gradient scaler, where the run stands, what its guard knows."""
    source: dict[str, torch.Tensor] = field(default_factory=dict)
    """Of the source of batches."""
    reference: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the reference said so far, where that is kept."""


@dataclass
class Checkpoints:
    """The checkpoints of one run: what each holds, and which are kept.

    Args:
        folder: that holds them.
        team: the processes of the run; its leader writes.
        step: whose weights, optimizer and schedule are saved and restored.
        source: of the batches.
        extra_weights: what else training changes, by name.
        kept: what the reference said so far; None where that is not kept.
        keep_newest: how many are kept, beside those that are asked for.
    """

    folder: Path
    team: Team
    step: Step
    source: Source
    extra_weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kept: KeptSums | None = None
    keep_newest: int = 1

    def save(self, number: int, extra: Mapping[str, Any], keep: set[int]) -> None:
        """Save the state after step `number`, and drop the checkpoints that nobody wants.

        Args:
            number: of optimizer steps that are done.
            extra: JSON that is restored beside the state.
            keep: steps whose checkpoints stay.
        """
        scaler = self.step.accelerator.scaler
        source, source_record = self.source.state()
        state = TrainingState(
            step=number,
            weights=self._whole(self._weights()),
            optimizer=self._whole(
                optimizer_tensors(self.step.optimizer.optimizer, self.step.parameters)
            ),
            random=random_states(self.team),
            source=source,
            reference={} if self.kept is None else self.kept.state(),
            extra={
                "scheduler": schedule_state(self.step.scheduler),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "source": source_record,
                **extra,
            },
        )
        if self.team.leads:
            save_checkpoint(self.folder, state)
            prune_checkpoints(self.folder, step=number, keep_newest=self.keep_newest, keep=keep)
        self.team.wait()  # none goes on with steps that a failed write would lose

    def restore(self) -> dict[str, Any] | None:
        """Put the newest sound checkpoint back; returns its `extra`, or None without one."""
        state = load_newest(self.folder) if self.team.leads else None
        newest = self.team.agree(None if state is None else state.step)
        if newest is None:
            return None
        state = state or load_checkpoint(self.folder, newest)
        self._load_weights(state)
        self._load_moments(state)
        scheduler, scaler = self.step.scheduler, self.step.accelerator.scaler
        scheduler.load_state_dict(state.extra["scheduler"])
        # The scheduler remembers its rates, but hands them to the optimizer only when it steps.
        set_rates(self.step.optimizer, scheduler.get_last_lr())
        if scaler is not None and state.extra["scaler"]:
            scaler.load_state_dict(state.extra["scaler"])
        set_random_states(state.random, self.team, newest)
        self.source.load_state(state.source, state.extra.get("source", {}))
        if self.kept is not None:
            self.kept.load_state(state.reference)
        return state.extra

    def roll_back(self, number: int) -> None:
        """Go on from the weights and moments of a checkpoint, with the batches that come next.

        Raises:
            TrainingError: it is missing or corrupt.
        """
        state = load_checkpoint(self.folder, number)
        self._load_weights(state)
        self._load_moments(state)
        self.source.discard()

    def load_weights(self, number: int) -> None:
        """Put the weights of one checkpoint back.

        Raises:
            TrainingError: it is missing or corrupt.
        """
        self._load_weights(load_checkpoint(self.folder, number))

    def _weights(self) -> dict[str, torch.Tensor]:
        return {**self.step.parameters, **self.extra_weights}

    def _whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All of each tensor on the CPU, where the leader saves them."""
        if self.step.scorer.is_sharded:
            from penchant.models.sharding import gathered

            return gathered(tensors, keep=self.team.leads)
        if not self.team.leads:
            return {}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def _load_weights(self, state: TrainingState) -> None:
        for name, weight in self._weights().items():
            weight.copy_(placed(state.weights[name], weight))

    def _load_moments(self, state: TrainingState) -> None:
        load_optimizer(self.step.optimizer.optimizer, self.step.parameters, state.optimizer)


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write `folder/step-N` so that it is there whole or not at all.

    Raises:
        TrainingError: the disk is full; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / f"step-{state.step}", folder / f".step-{state.step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        save_file(state.weights, partial / "weights.safetensors")
        save_file(state.optimizer, partial / "optimizer.safetensors")
        save_file(state.random, partial / "random.safetensors")
        for part, tensors in ((SOURCE, state.source), (REFERENCE, state.reference)):
            if tensors:
                save_file(tensors, partial / part)
        # A best loss of infinity is restored as that: strict JSON would make it null, which no
        # comparison takes. Only this file's own reader reads it.
        (partial / "state.json").write_text(json.dumps({"step": state.step, **state.extra}))
        digests = {file.name: _digest(file) for file in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(digests))
        for file in partial.iterdir():
            flush_to_disk(file)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        flush_to_disk(folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not is_disk_full(error):
            raise
        kept = ", ".join(f"step-{step}" for step in checkpoint_steps(folder)) or "none"
        raise TrainingError(
            f"the disk is full: checkpoint step-{state.step} could not be written to {folder} "
            f"(checkpoints that are intact: {kept}); free some space and run again with --resume"
        ) from error
    return target


def load_checkpoint(folder: Path, step: int) -> TrainingState:
    """Read one checkpoint.

    Raises:
        TrainingError: a file is missing or is not what was written.
    """
    source = folder / f"step-{step}"
    try:
        digests = json.loads((source / MANIFEST).read_text())
        if set(digests) - {SOURCE, REFERENCE} != FILES:
            raise TrainingError(f"checkpoint {source} is corrupt: {MANIFEST} names other files")
        for name, digest in digests.items():
            if _digest(source / name) != digest:
                raise TrainingError(f"checkpoint {source} is corrupt: {name} has changed")
        extra = json.loads((source / "state.json").read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"checkpoint {source} is incomplete: {error}") from error
    return TrainingState(
        step=extra.pop("step"),
        weights=load_file(source / "weights.safetensors"),
        optimizer=load_file(source / "optimizer.safetensors"),
        random=load_file(source / "random.safetensors"),
        extra=extra,
        source=load_file(source / SOURCE) if SOURCE in digests else {},
        reference=load_file(source / REFERENCE) if REFERENCE in digests else {},
    )


def load_newest(folder: Path) -> TrainingState | None:
    """The newest sound checkpoint, saying which unsound ones were passed over."""
    for step in reversed(checkpoint_steps(folder)):
        try:
            return load_checkpoint(folder, step)
        except TrainingError as error:
            logger.warning("%s; trying the one before it", error)
    return None


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first; other files may lie beside them."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def remove_checkpoint(folder: Path, step: int) -> None:
    """Remove one checkpoint, and the folder when it was the only one."""
    shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def prune_checkpoints(folder: Path, *, step: int, keep_newest: int, keep: set[int]) -> None:
    """Remove all but the newest `keep_newest` up to `step` and those in `keep`.

    Later ones do not count: they are unsound, or the run would have resumed from them.
    """
    reached = [saved for saved in checkpoint_steps(folder) if saved <= step]
    for saved in reached[:-keep_newest]:
        if saved not in keep:
            shutil.rmtree(folder / f"step-{saved}")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a lack of space; safetensors hides the number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or f"os error {errno.ENOSPC}" in str(error)


def _digest(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
