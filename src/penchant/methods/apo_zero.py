"""APO-zero (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import WeightedOptions, compared_with_reference, finish

if TYPE_CHECKING:
    from torch import Tensor


def apo_zero_loss(inputs: PairInputs, options: WeightedOptions) -> LossOutput:
    """APO-zero on pairs: the chosen completion becomes likelier, the rejected less likely (Eq. 7).

    Arguments and results are those of `anchored_loss`.
    """
    # 1 - sigmoid(x) = sigmoid(-x), exact for large x
    return anchored_loss(
        inputs, options, lambda chosen, rejected: (-chosen).sigmoid() + rejected.sigmoid()
    )


def anchored_loss(
    inputs: PairInputs, options: WeightedOptions, of_rewards: Callable[[Tensor, Tensor], Tensor]
) -> LossOutput:
    """The losses of a method that anchors each completion's reward at the reference.

    Args:
        inputs: sums of log-probabilities, `[pairs]`, the reference's too.
        options: `beta`, and what `finish` reads.
        of_rewards: the loss, between 0 and 2, of the chosen and the rejected completions' implicit
            rewards, `[pairs]` each.

    Returns:
        Losses, with an SFT term where the options ask for one, and metrics, `[pairs]`.
    """
    ratios = inputs.log_ratios()
    chosen, rejected = (options.beta * ratio for ratio in ratios)
    return finish(inputs, of_rewards(chosen, rejected), ratios, options)


APO_ZERO = compared_with_reference(
    "apo_zero",
    "Anchored Preference Optimization (zero)",
    WeightedOptions,
    apo_zero_loss,
    stability="stable; both rewards saturate",
    when="the chosen answers are better than what the model writes",
    paper="https://arxiv.org/abs/2408.06266",
    beta="0.1 usual; 0.05 to 0.5",
)
