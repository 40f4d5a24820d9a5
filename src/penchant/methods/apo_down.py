"""APO-down (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266)."""

from __future__ import annotations

from penchant.methods.base import LossOutput, Method, PairInputs
from penchant.methods.paired import WeightedOptions, finish, needs, reference_facts


class APODownOptions(WeightedOptions):
    """Options of APO-down."""


def apo_down_loss(inputs: PairInputs, options: APODownOptions) -> LossOutput:
    """APO-down on pairs: both completions become less likely, the rejected one more so.

    Args:
        inputs: summed log-probabilities, [pairs]; the reference's are required.
        options: `beta`, and the family's.

    Returns:
        Losses between 0 and 2 (before an SFT term) and metrics, [pairs].

    References:
        Eq. 8 of D'Oosterlinck et al. 2024.
    """
    ratios = inputs.log_ratios()
    chosen, rejected = (options.beta * ratio for ratio in ratios)
    # 1 - sigmoid(x) = sigmoid(-x), exact for large x
    return finish(inputs, chosen.sigmoid() + (rejected - chosen).sigmoid(), ratios, options)


APO_DOWN = Method(
    name="apo_down",
    title="Anchored Preference Optimization (down)",
    data="pairs",
    needs_reference=True,
    options=APODownOptions,
    loss=apo_down_loss,
    needs=needs,
    facts=reference_facts(
        stability="stable; both rewards saturate",
        when="the model already writes better than the chosen answers",
        paper="https://arxiv.org/abs/2408.06266",
        beta="0.1 usual; 0.05 to 0.5",
    ),
)
