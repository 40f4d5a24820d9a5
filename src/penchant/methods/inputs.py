"""What losses on labels and on scores take; that of losses on pairs is in `base`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LabelInputs:
    """Single completions that were found good or bad; every tensor but `kl` is [examples].

    Attributes:
        completion: summed log-probabilities under the policy, differentiable.
        ref_completion: under the reference.
        completion_len: tokens.
        desirable: bool.
        kl: scalar, at least 0: the policy's divergence from the reference in nats, estimated over
            the global batch from completions of other prompts; without gradient.
    """

    completion: Tensor
    ref_completion: Tensor
    completion_len: Tensor
    desirable: Tensor
    kl: Tensor


@dataclass(frozen=True)
class ScoreInputs:
    """Scores of a reward model; every tensor is [pairs].

    Attributes:
        chosen, rejected: differentiable.
        margin: how much better chosen was found, where the data say; else None.
    """

    chosen: Tensor
    rejected: Tensor
    margin: Tensor | None = None
