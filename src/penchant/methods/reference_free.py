"""What methods on pairs without a reference share: their facts, and an NLL beside contrasts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from penchant.methods.base import Facts, LossOutput, Method, PairInputs, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

without_reference = partial(Method, data="pairs", needs_reference=False)
alone = partial(Facts, data="pairwise preferences", models_in_memory="1 (no reference)")
"""The facts of methods that hold the policy alone."""


def with_nll(
    inputs: PairInputs, contrast: Tensor, rewards: tuple[Tensor, Tensor], nll_weight: float
) -> LossOutput:
    """Add supervised learning of the chosen completions, which keeps them likely.

    Args:
        inputs: as the loss has them.
        contrast: loss between the completions, [pairs].
        rewards: implicit rewards of the chosen and the rejected, [pairs] each.
        nll_weight: of the negative log-likelihood a completion token.
    """
    nll = inputs.nll()
    metrics = pair_metrics(inputs, *rewards) | {"nll": nll.detach()}
    return LossOutput(contrast + nll_weight * nll, metrics)
