"""What a run's checkpoints hold, and which are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.team import Team
from penchant.training.checkpoint_files import prune_checkpoints, write_checkpoint
from penchant.training.optimizer import optimizer_tensors, random_states, schedule_state

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
        step: whose weights, optimizer and schedule are saved.
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
            "start": self.start,
        }
        tensors = {
            **self.weights(),
            **named("optimizer", optimizer_tensors(self.step.optimizer.optimizer, self.trained)),
        }
        if self.team.leads:  # all processes have the same, and one writes it
            for part, some in shared.items():
                tensors |= named(part, some)
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

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that the step trains, by name."""
        return self.step.parameters

    @property
    def start(self) -> dict[str, torch.Tensor]:
        """What the adapter has taken out of its base at first; empty where that is nothing."""
        folder = getattr(self.step.scorer.model, "start_folder", None)
        if folder is None:
            return {}
        from penchant.models.adapter_starts import read_start

        return read_start(folder)

    def weights(self) -> dict[str, torch.Tensor]:
        """What training changes, in place, by the names that it is saved under."""
        every = {**self.trained, **self.extra_weights}
        return named("weights", {name: weight.detach() for name, weight in every.items()})


def named(part: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the name of the part of a checkpoint that they are."""
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}
