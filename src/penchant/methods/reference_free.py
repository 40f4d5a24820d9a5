"""What CPO and SimPO share: contrasts of log-probabilities without a reference, beside an NLL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penchant.methods.base import LossOutput, PairInputs, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor


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
