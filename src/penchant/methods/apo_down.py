"""APO-down (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266)."""

from __future__ import annotations

from penchant.methods.apo_zero import anchored_loss
from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import WeightedOptions, compared_with_reference


def apo_down_loss(inputs: PairInputs, options: WeightedOptions) -> LossOutput:
    """APO-down on pairs: both completions become less likely, the rejected one more so (Eq. 8).

    Arguments and results are those of `anchored_loss`.
    """
    return anchored_loss(
        inputs, options, lambda chosen, rejected: chosen.sigmoid() + (rejected - chosen).sigmoid()
    )


APO_DOWN = compared_with_reference(
    "apo_down",
    "Anchored Preference Optimization (down)",
    WeightedOptions,
    apo_down_loss,
    stability="stable; both rewards saturate",
    when="the model already writes better than the chosen answers",
    paper="https://arxiv.org/abs/2408.06266",
    beta="0.1 usual; 0.05 to 0.5",
)
