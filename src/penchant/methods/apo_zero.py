"""APO-zero (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266)."""

from __future__ import annotations

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import WeightedOptions, compared_with_reference, finish


class APOZeroOptions(WeightedOptions):
    """Options of APO-zero."""


def apo_zero_loss(inputs: PairInputs, options: APOZeroOptions) -> LossOutput:
    """APO-zero on pairs: the chosen completion becomes likelier, the rejected less likely.

    Takes sums of log-probabilities, `[pairs]`, the reference's too; returns losses between 0
    and 2 (before an SFT term) and metrics, [pairs].

    References:
        Eq. 7 of D'Oosterlinck et al. 2024.
    """
    ratios = inputs.log_ratios()
    chosen, rejected = (options.beta * ratio for ratio in ratios)
    # 1 - sigmoid(x) = sigmoid(-x), exact for large x
    return finish(inputs, (-chosen).sigmoid() + rejected.sigmoid(), ratios, options)


APO_ZERO = compared_with_reference(
    "apo_zero",
    "Anchored Preference Optimization (zero)",
    APOZeroOptions,
    apo_zero_loss,
    stability="stable; both rewards saturate",
    when="the chosen answers are better than what the model writes",
    paper="https://arxiv.org/abs/2408.06266",
    beta="0.1 usual; 0.05 to 0.5",
)
