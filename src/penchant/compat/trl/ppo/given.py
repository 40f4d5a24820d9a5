"""Answers and scores that a script has already, made into rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from penchant.data.prompts import Prompt
from penchant.data.tokenised import TokenisedPrompt
from penchant.methods import METHODS
from penchant.methods.advantages import whiten
from penchant.rl.rewards.shaping import RunningStatistics, clip
from penchant.rl.sampling.base import Completion, Draw

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.compat.trl.ppo.config import PPOConfig
    from penchant.compat.trl.ppo.tokens import Tokens
    from penchant.methods.experience import Advantages, Experience
    from penchant.methods.ppo import PPOOptions
    from penchant.rl.rewards.samples import Sample


@dataclass
class Given:
    """A sampler that repeats what was sampled, and a reward that repeats what was scored."""

    answers: Sequence[Tokens] = ()
    scores: list[float] = field(default_factory=list)
    name: str = "scores"

    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        """The answers, each the only one to its prompt."""
        return [[Completion(list(ids), [], ended=True)] for ids in self.answers]

    def sync(self) -> None:
        """Nothing is sampled."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return list(self.scores)


def as_prompts(queries: Sequence[Tokens]) -> list[TokenisedPrompt]:
    """Queries, named by their number within the batch."""
    return [
        TokenisedPrompt(list(ids), Prompt("", {}, f"query {i}"), f"query {i}")
        for i, ids in enumerate(queries)
    ]


class ScoreScaling:
    """What a configuration does to scores before they are learned from."""

    def __init__(self, config: PPOConfig) -> None:
        self.config, self.running = config, RunningStatistics()

    def __call__(self, scores: Sequence[float]) -> list[float]:
        """Divide by the running deviation, shift by the running mean, clip: each if asked for."""
        config, shift, scale = self.config, 0.0, 1.0
        if config.use_score_scaling:
            self.running.update(scores)
            variance = self.running.squares / max(self.running.num - 1, 1)
            scale = math.sqrt(variance) + torch.finfo(torch.float32).eps
            shift = self.running.mean if config.use_score_norm else 0.0
        return [clip((score - shift) / scale, config.score_clip) for score in scores]


def neutral(experience: Experience, mask: Tensor) -> Experience:
    """With tokens outside of `mask` `[N]` that cost nothing and are worth nothing."""
    assert experience.ref_logprobs is not None and experience.values is not None
    full = experience.full_kl
    return replace(
        experience,
        ref_logprobs=torch.where(mask, experience.ref_logprobs, experience.logprobs),
        values=experience.values * mask,
        full_kl=None if full is None else full * mask,
    )


def estimate(
    experience: Experience, mask: Tensor, kl_coef: float, options: PPOOptions
) -> Advantages:
    """PPO's advantages, whitened over the tokens of `mask` `[N]`, NaN outside of it."""
    advantages: Any = METHODS["ppo"].advantages
    estimated: Advantages = advantages(neutral(experience, mask), kl_coef, options)
    if bool(mask.all()):
        return estimated
    # Whitening is affine: what was whitened over all tokens can be over some.
    kept = torch.full_like(estimated.advantages, torch.nan)
    kept[mask] = whiten(estimated.advantages[mask])
    return replace(estimated, advantages=kept)
