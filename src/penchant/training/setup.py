"""What a run works with, loaded once: model, data, reference, and the parts made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding
from penchant.data.source import DatasetSource
from penchant.data.tokenise import TokenReport
from penchant.guards.checks.snapshot import Snapshot
from penchant.models.reference import Reference
from penchant.models.scoring import Scorer
from penchant.objectives import objective_of
from penchant.objectives.base import Parts
from penchant.objectives.labels import LabelObjective, blocks_of
from penchant.objectives.rollouts import RolloutObjective
from penchant.training.inputs import Record
from penchant.training.references import ReferenceCost

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.objectives import Objective
    from penchant.rl.rollout import Collector


@dataclass
class Setup:
    """What a run works with, loaded once; several runs may follow each other on it.

    Attributes:
        base: the resolved name of the model.
        tokenizer: with the template in use; end_ids: every token that ends an answer.
        train_set, eval_set: tokenised; eval_records: what eval_set was made of.
        reports: of tokenising, by side.
        scorer: the policy, on its device.
        plan: how it scores, for people.
        reference: None for methods without one; reference_cost: its memory and error.
        checkpointing: whether activations are recomputed.
        snapshot: what the checks look at; notes: about the rewards.
        collector: answers and judges prompts, for methods that sample; memory_held: bytes of what
            these keep in memory, by part.
    """

    base: str
    tokenizer: PreTrainedTokenizerBase
    end_ids: list[int]
    train_set: list[Any]
    eval_set: list[Any]
    eval_records: Sequence[Record]
    reports: dict[str, TokenReport]
    scorer: Scorer
    plan: str = ""
    reference: Reference | None = None
    reference_cost: ReferenceCost | None = None
    checkpointing: bool = False
    snapshot: Snapshot | None = None
    notes: list[Finding] = field(default_factory=list)
    collector: Collector | None = None
    memory_held: dict[str, int] = field(default_factory=dict)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {n: p for n, p in self.scorer.named_parameters() if p.requires_grad}

    def dataset_source(self, config: RunConfig, accelerator: Accelerator) -> DatasetSource[Any]:
        """The batches of a run on data that are there."""
        return make_dataset_source(
            config,
            self.train_set,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )

    def objective(self, config: RunConfig, accelerator: Accelerator) -> Objective:
        """The objective of the run's method on this model."""
        parts = Parts(
            self.scorer, self.reference, config.spec, config.options, _gather(accelerator)
        )
        kind = objective_of(config.spec)
        if kind is RolloutObjective:
            assert self.collector is not None
            return RolloutObjective(parts, self.collector)
        return kind(parts, self.train_set) if kind is LabelObjective else kind(parts)


def make_dataset_source(
    config: RunConfig, examples: Sequence[Any], *, rank: int = 0, world_size: int = 1
) -> DatasetSource[Any]:
    """The batches of tokenised examples, for one of `world_size` processes."""
    together = config.spec.data == "labels" and config.shuffle
    return DatasetSource(
        examples,
        micro_batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        num_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        shuffle=config.shuffle,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        blocks=blocks_of(examples) if together else None,
    )


def _gather(accelerator: Accelerator) -> Any:
    """Lists of this process to those of all of them, in order."""

    def gather(own: list[Any]) -> list[Any]:
        if accelerator.num_processes == 1:
            return own
        from accelerate.utils import gather_object

        return list(gather_object(own))

    return gather
