"""APO-zero (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266)."""

from __future__ import annotations

from penchant.methods.base import LossOutput, Method, PairInputs
from penchant.methods.paired import WeightedOptions, finish, needs, reference_facts


class APOZeroOptions(WeightedOptions):
    """Options of APO-zero."""


def apo_zero_loss(inputs: PairInputs, options: APOZeroOptions) -> LossOutput:
    """APO-zero on pairs: the chosen completion becomes likelier, the rejected less likely.

    Args:
        inputs: summed log-probabilities, [pairs]; the reference's are required.
        options: `beta`, and the family's.

    Returns:
        Losses between 0 and 2 (before an SFT term) and metrics, [pairs].

    References:
        Eq. 7 of D'Oosterlinck et al. 2024.
    """
    ratios = inputs.log_ratios()
    chosen, rejected = (options.beta * ratio for ratio in ratios)
    # 1 - sigmoid(x) = sigmoid(-x), exact for large x
    return finish(inputs, (-chosen).sigmoid() + rejected.sigmoid(), ratios, options)


APO_ZERO = Method(
    name="apo_zero",
    title="Anchored Preference Optimization (zero)",
    data="pairs",
    needs_reference=True,
    options=APOZeroOptions,
    loss=apo_zero_loss,
    needs=needs,
    facts=reference_facts(
        stability="stable; both rewards saturate",
        when="the chosen answers are better than what the model writes",
        paper="https://arxiv.org/abs/2408.06266",
        beta="0.1 usual; 0.05 to 0.5",
    ),
)
