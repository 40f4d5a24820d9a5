"""Divergence from the reference: the penalty of each token, and the coefficient that scales it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

KLPenalty = Literal["kl", "abs", "mse", "full"]


def kl_penalty(
    kind: KLPenalty, logprobs: Tensor, ref_logprobs: Tensor, full_kl: Tensor | None = None
) -> Tensor:
    """What each token is charged for, `[N]`, in nats.

    Args:
        kind: `kl` the log-ratio, whose mean over samples is the divergence; `abs` its absolute
            value; `mse` half its square (Schulman's k2, http://joschu.net/blog/kl-approx.html);
            `full` the exact divergence of the two distributions.
        logprobs, ref_logprobs: `[N]`, of the sampled tokens.
        full_kl: `[N]`, KL(policy || reference) over the whole vocabulary, for `full`.
    """
    log_ratio = logprobs - ref_logprobs
    if kind == "kl":
        return log_ratio
    if kind == "abs":
        return log_ratio.abs()
    if kind == "mse":
        return 0.5 * log_ratio.square()
    assert full_kl is not None
    return full_kl


@dataclass
class FixedKLController:
    """A coefficient that stays as it is."""

    value: float

    def update(self, current: float, n_steps: int) -> None:
        """Nothing changes."""


@dataclass
class AdaptiveKLController:
    """The proportional controller of Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593, 2.2).

    Attributes:
        value: the coefficient.
        target: divergence of a whole answer to hold, in nats.
        horizon: samples over which an error of 20% moves the coefficient by about 20%.
    """

    value: float
    target: float
    horizon: float

    def update(self, current: float, n_steps: int) -> None:
        """Raise the coefficient where `current` nats are above the target, lower it below.

        Args:
            current: mean divergence of the last answers.
            n_steps: how many they were.
        """
        error = min(max(current / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon


KLController = FixedKLController | AdaptiveKLController
