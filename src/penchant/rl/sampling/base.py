"""What is asked of a sampler, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from penchant.core.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; log-probs are taken of the same distribution.

    Attributes:
        max_completion_length: tokens, the end token included.
        temperature: of the softmax; 0 takes the likeliest token.
        top_k: keep the likeliest tokens only; 0: all.
        top_p: keep the smallest set that has this probability (nucleus).
    """

    max_completion_length: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Draw:
    """What is drawn for each of some prompts.

    The seed and a prompt's number decide alone: a share of the prompts is answered as all are.

    Attributes:
        sampling: how answers are drawn.
        seed: of the random numbers.
        n: answers to each prompt.
        numbers: of the prompts, among all that are answered now; None: in order from 0.
        tells: also entropies and values, of a sampler that can tell them.
    """

    sampling: Sampling
    seed: int
    n: int = 1
    numbers: Sequence[int] | None = None
    tells: bool = False

    def numbers_of(self, prompts: Sequence[object]) -> Sequence[int]:
        """The number of each prompt."""
        return range(len(prompts)) if self.numbers is None else self.numbers


class Completion(NamedTuple):
    """One sampled answer: its tokens, their log-probs, and whether the model ended it itself.

    Where they were asked for, also the entropy of the distribution that each token was drawn from,
    and the policy's value there.
    """

    ids: list[int]
    logprobs: list[float]
    ended: bool
    entropies: Sequence[float] = ()
    values: Sequence[float] = ()


class Sampler(Protocol):
    """Draws answers from the policy as it is now."""

    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        """Answers to each prompt, given as token ids, in the order of `prompts`."""

    def sync(self) -> None:
        """The policy's weights have changed."""


def require_sampling(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Refuse what no answer can be drawn with.

    Raises:
        ConfigError: a value out of its range.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature must be 0 or more, got {temperature}; 0 draws nothing")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be above 0 and at most 1, got {top_p}")
