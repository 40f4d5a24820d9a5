"""What was learned about a batch of sampled answers: ragged rows, laid end to end."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Answers:
    """B sampled answers of N tokens together, laid end to end; tokens of answer 0 first.

    Attributes:
        lengths: `[B]`, tokens of each answer.
        logprobs: `[N]`, of the sampled tokens under a policy, in nats.
        ref_logprobs: `[N]`, under the reference; None without one.
        values: `[N]`, the value head at the position that predicts each token; None without one.
    """

    lengths: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None

    @cached_property
    def index(self) -> Tensor:
        """`[N]`: the answer that each token belongs to."""
        numbers = self.lengths.new_ones(len(self.lengths)).cumsum(0) - 1  # made on the device
        return numbers.repeat_interleave(self.lengths, output_size=len(self.logprobs))

    def sums(self, values: Tensor) -> Tensor:
        """`[B]`: sums of `[N]` over each answer."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.index, values)

    def means(self, values: Tensor) -> Tensor:
        """`[B]`: means of `[N]` over each answer."""
        return self.sums(values) / self.lengths


@dataclass(frozen=True, kw_only=True)
class Experience(Answers):
    """Answers with their scores; `logprobs` are those of the policy that sampled them, as it is
    scored.

    Attributes:
        group: `[B]`, which prompt each answers: answers of one prompt have one number.
        scores: `[B]`, what the rewards came to.
        full_kl: `[N]`, KL(policy || reference) over the vocabulary, where it was asked for.
        entropy: `[N]`, of the policy at that position.
        ended: `[B]` bool, whether the answer ended before max_completion_length.
        by_reward: `[B, R]`, what each of the R rewards gave, before weights and normalisation.
        penalties: `[B]`, what the penalties added to each answer's score (at most 0).
        divergence: `[N]`, of the policy's distributions from a teacher's; None without one.
    """

    group: Tensor
    scores: Tensor
    full_kl: Tensor | None = None
    entropy: Tensor | None = None
    sampled_logprobs: Tensor | None = None
    ended: Tensor | None = None
    by_reward: Tensor | None = None
    penalties: Tensor | None = None
    divergence: Tensor | None = None


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


@dataclass(frozen=True, kw_only=True)
class RolloutInputs(Answers):
    """Sampled answers as a training pass sees them; `logprobs` and `values` are differentiable.

    Attributes:
        old_logprobs: `[N]`, under the policy that sampled them.
        advantages: `[N]`.
        mean_len: mean length over the whole global batch, so that averages over its tokens do not
            depend on how it is divided; default: over this batch. mean_good_len: of those whose
            advantage is above 0.
        entropy: `[N]`; differentiable only where an entropy bonus is trained.
        old_values, returns: `[N]`, of the value head as it was when the answers were sampled, and
            what it should have said; None for methods without one.
        divergence: `[N]`, of the policy's distributions from a teacher's, as `Needs.divergence`
            asks for it, differentiable; teacher_kl: KL(policy || teacher) there, without gradient.
    """

    old_logprobs: Tensor
    advantages: Tensor
    entropy: Tensor
    mean_len: float | None = None
    mean_good_len: float | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    divergence: Tensor | None = None
    teacher_kl: Tensor | None = None

    def token_means(self, values: Tensor) -> Tensor:
        """`[B]` whose mean over the global batch is the mean of `[N]` over all its tokens."""
        return self.sums(values) / (self.mean_len or float(self.lengths.cpu().double().mean()))
