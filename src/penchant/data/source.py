"""Where the loop's batches come from: a data set, visited in a reproducible order."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Example = TypeVar("Example")


@dataclass(frozen=True)
class StepBatch(Generic[Example]):
    """The examples of one optimizer step.

    Attributes:
        step: 1 for the first.
        epoch: passes over the data that are complete after this step.
        micro_batches: this process's share, one list a forward pass, each with its weight: 0 for
            a stand-in where a process has nothing left but must take part.
        num_examples: of all processes together: what losses are divided by.
    """

    step: int
    epoch: float
    micro_batches: list[tuple[list[Example], float]]
    num_examples: int


class DatasetSource(Generic[Example]):
    """Steps over a list of examples; the order depends on the seed and the epoch alone.

    That makes the step number the whole state: a resumed run starts at `steps(done)`.
    """

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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert examples
        self.examples = examples
        self.micro_batch_size = micro_batch_size
        self.step_size = micro_batch_size * accumulation * world_size
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = math.ceil(len(examples) / self.step_size)
        self.num_steps = max_steps or max(1, math.ceil(num_epochs * self.steps_per_epoch))

    def steps(self, done: int = 0) -> Iterator[StepBatch[Example]]:
        """The steps after the first `done`."""
        for step in range(done, self.num_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            order = self._order(epoch)
            chosen = order[within * self.step_size : (within + 1) * self.step_size]
            own = chosen[self.rank :: self.world_size]
            weight = 1.0 if own else 0.0
            own = own or chosen[:1]
            size = self.micro_batch_size
            micro_batches = [
                ([self.examples[i] for i in own[start : start + size]], weight)
                for start in range(0, len(own), size)
            ]
            # Every process runs the same number of passes, as collectives require.
            passes = math.ceil(math.ceil(len(chosen) / self.world_size) / size)
            while len(micro_batches) < passes:
                micro_batches.append(([self.examples[chosen[0]]], 0.0))
            done_examples = within * self.step_size + len(chosen)
            yield StepBatch(
                step + 1, epoch + done_examples / len(order), micro_batches, len(chosen)
            )

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.examples)))
        if self.shuffle:
            random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
        return order
