"""APO-down (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266)."""

from __future__ import annotations

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import WeightedOptions, compared_with_reference, finish


class APODownOptions(WeightedOptions):
    """Options of APO-down."""


def apo_down_loss(inputs: PairInputs, options: APODownOptions) -> LossOutput:
    """APO-down on pairs: both completions become less likely, the rejected one more so.

    Takes sums of log-probabilities, `[pairs]`, the reference's too; returns losses between 0
    and 2 (before an SFT term) and metrics, [pairs].

    References:
        Eq. 8 of D'Oosterlinck et al. 2024.
    """
    ratios = inputs.log_ratios()
    chosen, rejected = (options.beta * ratio for ratio in ratios)
    # 1 - sigmoid(x) = sigmoid(-x), exact for large x
    return finish(inputs, chosen.sigmoid() + (rejected - chosen).sigmoid(), ratios, options)


APO_DOWN = compared_with_reference(
    "apo_down",
    "Anchored Preference Optimization (down)",
    APODownOptions,
    apo_down_loss,
    stability="stable; both rewards saturate",
    when="the model already writes better than the chosen answers",
    paper="https://arxiv.org/abs/2408.06266",
    beta="0.1 usual; 0.05 to 0.5",
)
