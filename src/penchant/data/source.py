"""Where the loop's batches come from: a data set, visited in a reproducible order."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from penchant.core.team import ALONE, Team

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.budget import TokenBudget

Example = TypeVar("Example")


@dataclass(frozen=True)
class StepBatch(Generic[Example]):
    """The examples of one optimizer step.

    Attributes:
        step: 1 for the first.
        epoch: passes over the data that are complete after this step.
        micro_batches: this process's share, one list a forward pass, each with its weight: 0 for
            a stand-in where a process has nothing left but must take part.
        examples: of all processes together, in order; losses are divided by their number.
        metrics: what the source knows of them, logged with the step.
        budget: what divided it, where micro-batches are filled by tokens.
    """

    step: int
    epoch: float
    micro_batches: list[tuple[list[Example], float]]
    examples: list[Example]
    metrics: Mapping[str, float] = field(default_factory=dict)
    budget: TokenBudget | None = field(default=None, compare=False)

    @property
    def num_examples(self) -> int:
        """Of all processes together."""
        return len(self.examples)

    def divided_again(self) -> StepBatch[Example]:
        """As its budget divides it now; of one process."""
        assert self.budget is not None
        divided = [(some, 1.0) for some in self.budget.divide(self.examples)]
        return replace(self, micro_batches=divided)


class Source(Protocol):
    """Where the loop's batches come from."""

    @property
    def foreseeable(self) -> bool:
        """Whether a step's examples are known before the step before it is taken."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""

    def steps(self, done: int = 0) -> Iterator[StepBatch[Any]]:
        """The steps after the first `done`."""

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Learn what the last step found."""

    def discard(self) -> None:
        """Forget what the present weights have made: they are replaced by others."""

    def summary(self) -> dict[str, float]:
        """What it did, for the run's summary; empty where data are only visited."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run needs beside the step's number: tensors, and what is JSON."""

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""


class DatasetSource(Generic[Example]):
    """Steps over a list of examples; the order depends on the seed and the epoch alone.

    That makes the step number the whole state: a resumed run starts at `steps(done)`.

    Args:
        examples: at least one.
        team: the processes that share them.
        blocks: indices that stay together when shuffling, all of them in all; default: each alone.
        budget: fills micro-batches by tokens in place of `micro_batch_size`; a step has as many
            examples with it as without.
    """

    foreseeable = True

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        micro_batch_size: int,
        accumulation: int,
        num_epochs: float,
        max_steps: int | None,
        shuffle: bool,
        seed: int,
        team: Team = ALONE,
        blocks: Sequence[Sequence[int]] | None = None,
        budget: TokenBudget | None = None,
    ) -> None:
        assert examples
        self.budget = budget
        self.examples = examples
        self.blocks = blocks or [[i] for i in range(len(examples))]
        self.micro_batch_size = micro_batch_size
        self.step_size = micro_batch_size * accumulation * team.size
        self.shuffle, self.seed = shuffle, seed
        self.team = team
        self.steps_per_epoch = math.ceil(len(examples) / self.step_size)
        self.num_steps = max_steps or max(1, math.ceil(num_epochs * self.steps_per_epoch))

    def steps(self, done: int = 0) -> Iterator[StepBatch[Example]]:
        """The steps after the first `done`."""
        order: list[int] = []
        for step in range(done, self.num_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if not order or within == 0:
                order = self._order(epoch)
            chosen = order[within * self.step_size : (within + 1) * self.step_size]
            done_examples = within * self.step_size + len(chosen)
            yield StepBatch(
                step=step + 1,
                epoch=epoch + done_examples / len(order),
                micro_batches=self._share(chosen),
                examples=[self.examples[i] for i in chosen],
                budget=self.budget,
            )

    def visited(self) -> list[Example]:
        """Every example that some step uses, each once."""
        if self.num_steps >= self.steps_per_epoch:
            return list(self.examples)
        return [self.examples[i] for i in self._order(0)[: self.num_steps * self.step_size]]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Nothing depends on it."""

    def discard(self) -> None:
        """The data are what they are."""

    def summary(self) -> dict[str, float]:
        """The number of steps says it all."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of the budget: beside it the step number is all."""
        return {}, {} if self.budget is None else self.budget.state()

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        if self.budget is not None:
            self.budget.load_state(state)

    def _share(self, chosen: Sequence[int]) -> list[tuple[list[Example], float]]:
        """This process's micro-batches; every process runs the same number, as collectives need."""
        size = self.team.size
        shares = [self._divided(chosen[rank::size]) for rank in range(size)]
        own, stand_in = shares[self.team.rank], [self.examples[chosen[0]]]
        missing = max(map(len, shares)) - len(own)
        return [(some, 1.0) for some in own] + [(stand_in, 0.0)] * missing

    def _divided(self, share: Sequence[int]) -> list[list[Example]]:
        examples = [self.examples[i] for i in share]
        if self.budget is not None:
            return self.budget.divide(examples)
        size = self.micro_batch_size
        return [examples[start : start + size] for start in range(0, len(examples), size)]

    def _order(self, epoch: int) -> list[int]:
        return visiting_order(self.blocks, epoch, self.shuffle, self.seed)


class Ahead(Generic[Example]):
    """The steps of a source, of which the next one is prepared while a step is taken.

    Args:
        source: of the batches.
        done: steps that are done.
        prepare: what can be done for a step before it is its turn.
    """

    def __init__(
        self, source: Source, done: int, prepare: Callable[[StepBatch[Example]], object]
    ) -> None:
        self._steps = source.steps(done)
        self._foreseeable = source.foreseeable
        self._prepare = prepare
        self._next: list[StepBatch[Example]] = []

    def __iter__(self) -> Iterator[StepBatch[Example]]:
        while batch := self._next.pop() if self._next else next(self._steps, None):
            yield batch

    def look(self) -> None:
        """Fetch the next step and prepare it, where it is known already."""
        if self._foreseeable and not self._next:
            self._next = list(islice(self._steps, 1))
            for batch in self._next:
                self._prepare(batch)


def visiting_order(
    blocks: Sequence[Sequence[int]], epoch: int, shuffle: bool, seed: int
) -> list[int]:
    """Indices in the order of one epoch; those of a block stay together."""
    blocks = list(blocks)
    if shuffle:
        random.Random(f"{seed} epoch {epoch}").shuffle(blocks)
    return [i for block in blocks for i in block]
