"""What a run works with: its data, its inputs, and what is loaded for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from penchant.core.findings import Finding
from penchant.data.records import Data, Label, Pair
from penchant.data.token_report import TokenReport
from penchant.models.reference import Reference
from penchant.models.scoring import Scorer
from penchant.training.references import ReferenceCost

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.data.prompts import Prompt
    from penchant.rl.rollout import Collector


Record: TypeAlias = "Pair | Label | Prompt"


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is held against."""

    train: Sequence[Record]
    evaluation: Sequence[Record]
    sources: list[Data[Any]]


@dataclass
class Inputs:
    """What a run is given; no weight was loaded for it.

    Attributes:
        base: the resolved name of the model; settings: its configuration as it was saved.
        tokenizer: with the template in use; end_ids: every token that ends an answer.
        run_data: the records.
        train_set, eval_set: what tokenising made of them; reports: of that, by side.
        rewards: functions or names that judge answers, for methods that sample.
        monitor_rewards: likewise of monitored answers; at most one.
    """

    base: str
    settings: Any
    tokenizer: PreTrainedTokenizerBase
    end_ids: list[int]
    run_data: RunData
    train_set: list[Any]
    eval_set: list[Any]
    reports: dict[str, TokenReport]
    rewards: list[Any]
    monitor_rewards: list[Any]

    @property
    def eval_records(self) -> Sequence[Record]:
        """What `eval_set` was made of."""
        return self.run_data.evaluation


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
        decided: values of keys that were left to be found.
    """

    scorer: Scorer
    plan: str = ""
    reference: Reference | None = None
    reference_cost: ReferenceCost | None = None
    checkpointing: bool = False
    notes: list[Finding] = field(default_factory=list)
    collector: Collector | None = None
    memory_held: dict[str, int] = field(default_factory=dict)
    decided: dict[str, Any] = field(default_factory=dict)

    def decide(self, config: RunConfig) -> RunConfig:
        """The configuration with what was found for those of its keys that are auto."""
        found = {key: v for key, v in self.decided.items() if getattr(config, key) == "auto"}
        return config.model_copy(update=found) if found else config

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {n: p for n, p in self.scorer.named_parameters() if p.requires_grad}
