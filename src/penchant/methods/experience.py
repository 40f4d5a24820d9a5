"""What was learned about a batch of sampled answers: ragged rows, laid end to end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Experience:
    """B answers of N tokens together; tokens of answer 0 first.

    Attributes:
        lengths: `[B]`, tokens of each answer.
        group: `[B]`, which prompt each answers: answers of one prompt have one number.
        scores: `[B]`, what the rewards came to.
        logprobs: `[N]`, under the policy that sampled them, in nats.
        ref_logprobs: `[N]`, under the reference; None without one.
        full_kl: `[N]`, KL(policy || reference) over the vocabulary, where it was asked for.
        values: `[N]`, the value head at the position that predicts each token; None without one.
        entropy: `[N]`, of the policy at that position.
    """

    lengths: Tensor
    group: Tensor
    scores: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor | None = None
    full_kl: Tensor | None = None
    values: Tensor | None = None
    entropy: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """`[N]`: the answer that each token belongs to."""
        return self.group.new_tensor(range(len(self.lengths))).repeat_interleave(self.lengths)

    def sums(self, values: Tensor) -> Tensor:
        """`[B]`: sums of `[N]` over each answer."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.index, values)


@dataclass(frozen=True)
class Advantages:
    """What a method makes of an experience.

    Attributes:
        advantages: `[N]`.
        returns: `[N]`, what the value head should say; None for methods without one.
        kept: `[B]` bool, the answers worth a training pass; None: all.
        metrics: means over the batch.
    """

    advantages: Tensor
    returns: Tensor | None = None
    kept: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
