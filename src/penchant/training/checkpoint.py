"""What a run's checkpoints hold, and how the run goes on from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.team import Team
from penchant.training.checkpoint_files import prune_checkpoints, write_checkpoint
from penchant.training.optimizer import (
    load_optimizer,
    optimizer_tensors,
    random_states,
    schedule_state,
    set_random_states,
    set_rates,
)

if TYPE_CHECKING:
    from penchant.data.source import Source
    from penchant.models.reference import KeptSums
    from penchant.training.step import Step


@dataclass
class Checkpoints:
    """The checkpoints of one run: what each holds, and which are kept.

    Args:
        folder: that holds them.
        team: the processes of the run; each calls every method.
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
        shared = {
            "random": random_states(self.team),
            "source": source,
            "reference": {} if self.kept is None else self.kept.state(),
        }
        tensors = {
            **self._weights(),
            **_named("optimizer", optimizer_tensors(self.step.optimizer.optimizer, self._trained)),
        }
        if self.team.leads:  # all processes have the same, and one writes it
            for part, some in shared.items():
                tensors |= _named(part, some)
        record = {
            "step": number,
            "scheduler": schedule_state(self.step.scheduler),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "source": source_record,
            **extra,
        }
        write_checkpoint(self.folder, number, tensors, record, self.team)
        if self.team.leads:
            prune_checkpoints(self.folder, step=number, keep_newest=self.keep_newest, keep=keep)

    def restore(self) -> dict[str, Any] | None:
        """Put the newest sound checkpoint back; returns its record, or None without one."""
        from penchant.training.checkpoint_reading import fill, newest_checkpoint, read_part

        newest = newest_checkpoint(self.folder, self.team)
        if newest is None:
            return None
        number, record = newest
        read = partial(read_part, self.folder, number)
        fill(self.folder, number, self._weights())
        self._load_moments(number)
        scheduler, scaler = self.step.scheduler, self.step.accelerator.scaler
        scheduler.load_state_dict(record["scheduler"])
        # The scheduler remembers its rates, but hands them to the optimizer only when it steps.
        set_rates(self.step.optimizer, scheduler.get_last_lr())
        if scaler is not None and record["scaler"]:
            scaler.load_state_dict(record["scaler"])
        set_random_states(read("random"), self.team, number)
        self.source.load_state(read("source"), record["source"])
        if self.kept is not None:
            self.kept.load_state(read("reference"))
        return record

    def roll_back(self, number: int) -> None:
        """Go on from the weights and moments of a checkpoint, with the batches that come next.

        Raises:
            TrainingError: it is missing or corrupt.
        """
        self.load_weights(number)
        self._load_moments(number)
        self.source.discard()

    def load_weights(self, number: int) -> None:
        """Put the weights of one checkpoint back.

        Raises:
            TrainingError: it is missing or corrupt.
        """
        from penchant.training.checkpoint_reading import fill, verify_checkpoint

        verify_checkpoint(self.folder, number, self.team)
        fill(self.folder, number, self._weights())

    @property
    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return self.step.parameters

    def _weights(self) -> dict[str, torch.Tensor]:
        every = {**self._trained, **self.extra_weights}
        return _named("weights", {name: weight.detach() for name, weight in every.items()})

    def _load_moments(self, number: int) -> None:
        from penchant.training.checkpoint_reading import fill, saved_shapes

        prefix = "optimizer/"
        names = saved_shapes(self.folder, number)
        saved = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}

        def put(places: Mapping[str, torch.Tensor]) -> None:
            fill(self.folder, number, _named("optimizer", places))

        load_optimizer(self.step.optimizer.optimizer, self._trained, saved, put)


def _named(part: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}
