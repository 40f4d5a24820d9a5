"""What a run works with, loaded once; several runs may follow each other on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding
from penchant.models.reference import Reference
from penchant.models.scoring import Scorer
from penchant.objectives.base import Parts
from penchant.training.inputs import Inputs
from penchant.training.kinds import kind_of
from penchant.training.references import ReferenceCost

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.source import DatasetSource
    from penchant.objectives.base import Objective
    from penchant.rl.rollout import Collector


@dataclass
class Setup(Inputs):
    """The inputs of a run, with the models and what is made of them.

    Attributes:
        scorer: the policy, on its device.
        plan: how it scores, for people.
        reference: None for methods without one; reference_cost: its memory and error.
        checkpointing: whether activations are recomputed.
        notes: what is to be said of the rewards.
        collector: answers and judges prompts, for methods that sample; memory_held: bytes of what
            these keep in memory, by part.
    """

    scorer: Scorer
    plan: str = ""
    reference: Reference | None = None
    reference_cost: ReferenceCost | None = None
    checkpointing: bool = False
    notes: list[Finding] = field(default_factory=list)
    collector: Collector | None = None
    memory_held: dict[str, int] = field(default_factory=dict)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {n: p for n, p in self.scorer.named_parameters() if p.requires_grad}

    def dataset(self, config: RunConfig, accelerator: Accelerator) -> DatasetSource[Any]:
        """The batches of a run on data that are there, for this process."""
        return kind_of(config.spec).dataset(
            config,
            self.train_set,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )

    def objective(self, config: RunConfig, accelerator: Accelerator) -> Objective:
        """The objective of the run's method on this model."""
        parts = Parts(
            self.scorer, self.reference, config.spec, config.options, _gather(accelerator)
        )
        return kind_of(config.spec).objective(parts, self)


def _gather(accelerator: Accelerator) -> Any:
    """Lists of this process to those of all of them, in order."""

    def gather(own: list[Any]) -> list[Any]:
        if accelerator.num_processes == 1:
            return own
        from accelerate.utils import gather_object

        return list(gather_object(own))

    return gather
