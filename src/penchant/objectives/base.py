"""What the loop asks of an objective, and what all objectives share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

from penchant.core.team import ALONE, Team
from penchant.methods import LossOutput, Method
from penchant.models.reference import Progress, Reference

if TYPE_CHECKING:
    from penchant.core.evaluation import Evaluation
    from penchant.data.source import StepBatch
    from penchant.models.scoring import Scorer

L = TypeVar("L")


class Objective(Protocol):
    """Turns examples into unreduced losses; knows the data, not the method by name."""

    def prepare(self, model: torch.nn.Module, step: StepBatch[Any]) -> Any:
        """What the losses of a step's micro-batches share, such as means over all of them."""

    def look_ahead(self, step: StepBatch[Any]) -> None:
        """Lay the micro-batches of the next step out, while the device is at work on this one."""

    def __call__(
        self, model: torch.nn.Module, examples: Sequence[Any], shared: Any
    ) -> tuple[LossOutput, int]:
        """Losses of one micro-batch, and how many tokens were laid out for them."""

    def evaluate(
        self, examples: Sequence[Any], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        """The policy on held-out examples, at least one."""


@dataclass(frozen=True)
class Parts:
    """What every objective is made of.

    Attributes:
        scorer: the policy.
        reference: None for methods without one.
        method, options: whose loss and rewards are computed.
        team: the processes that share the examples.
        max_length: tokens of a prompt with a completion of another one, where they are paired.
    """

    scorer: Scorer
    reference: Reference | None
    method: Method
    options: Any
    team: Team = ALONE
    max_length: int | None = None


class LaidOut(Generic[L]):
    """What passes over micro-batches take, on the device: laid out ahead, or when asked for."""

    def __init__(self, lay_out: Callable[[Sequence[Any]], L]) -> None:
        self._lay_out = lay_out
        # The micro-batches are held, so that no other list gets their identity meanwhile.
        self._ahead: dict[int, tuple[Sequence[Any], L]] = {}

    def look_ahead(self, step: StepBatch[Any]) -> None:
        """Lay out the micro-batches of a step, which comes next."""
        self._ahead = {id(some): (some, self._lay_out(some)) for some, _ in step.micro_batches}

    def __call__(self, examples: Sequence[Any]) -> L:
        """Of one micro-batch."""
        known = self._ahead.get(id(examples))
        return self._lay_out(examples) if known is None else known[1]
