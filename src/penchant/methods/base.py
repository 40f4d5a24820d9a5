"""The contract of a method: facts, options, and a pure loss over per-example tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor


class MethodOptions(BaseModel):
    """Options that only one method reads; each is a flat key of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class PairInputs:
    """Sums of log-probabilities over completion tokens, in nats; every tensor is [pairs]."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None
    chosen_len: Tensor
    rejected_len: Tensor

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """log policy / reference of the chosen and of the rejected completions, [pairs] each."""
        assert self.ref_chosen is not None and self.ref_rejected is not None
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected


class LossOutput(NamedTuple):
    """What a loss returns: nothing in it is reduced."""

    per_example: Tensor
    """[pairs], differentiable."""
    metrics: dict[str, Tensor]
    """Detached, [pairs] each; the engine averages them over the global batch."""


@dataclass(frozen=True)
class Facts:
    """What one has to know to choose a method, and what the checks hold a run against."""

    data: str
    models_in_memory: str
    stability: str
    when: str
    paper: str
    learning_rate: float
    """Default for training all weights."""
    learning_rate_lora: float
    """Default for LoRA, whose updates are scaled and low-rank: about ten times higher."""
    learning_rate_range: tuple[float, float]
    """Sane values for all weights."""


@dataclass(frozen=True)
class Method:
    """One entry of `METHODS`."""

    name: str
    title: str
    data: Literal["pairs"]
    needs_reference: bool
    options: type[MethodOptions]
    loss: Callable[[PairInputs, Any], LossOutput]
    facts: Facts


def pair_metrics(
    inputs: PairInputs, chosen_reward: Tensor, rejected_reward: Tensor
) -> dict[str, Tensor]:
    """The metrics every pairwise method reports, from its own implicit rewards, [pairs] each."""
    margin = chosen_reward - rejected_reward
    return {
        "reward/chosen": chosen_reward.detach(),
        "reward/rejected": rejected_reward.detach(),
        "reward/margin": margin.detach(),
        "reward/accuracy": accuracy(margin),
        "logprob/chosen": inputs.chosen.detach(),
        "logprob/rejected": inputs.rejected.detach(),
    }


def accuracy(margin: Tensor) -> Tensor:
    """1 where the margin is positive, one half where it is exactly 0, as before any training."""
    return (margin.detach().sign() + 1) / 2
