"""Self-Play Preference Optimization (Wu et al. 2024, https://arxiv.org/abs/2405.00675)."""

from __future__ import annotations

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import WeightedOptions, compared_with_reference, finish


class SPPOOptions(WeightedOptions):
    """Options of SPPO."""

    beta: float = Field(
        1e-3, gt=0, description="1 / eta of the paper: log-ratios aim at 1 / (2 beta) and minus it."
    )


def sppo_loss(inputs: PairInputs, options: SPPOOptions) -> LossOutput:
    """SPPO with hard labels on pairs.

    Takes sums of log-probabilities, `[pairs]`, the reference's too; returns losses and metrics,
    [pairs]. Implicit rewards are `beta * log(policy / reference)`.

    References:
        Eq. 4.7 of Wu et al. 2024 with a win probability of 1 for the chosen and 0 for the
        rejected, where the paper estimates them with a preference model.
    """
    chosen, rejected = inputs.log_ratios()
    target = 1 / (2 * options.beta)
    loss = (chosen - target) ** 2 + (rejected + target) ** 2
    return finish(inputs, loss, (chosen, rejected), options)


SPPO = compared_with_reference(
    "sppo",
    "Self-Play Preference Optimization",
    SPPOOptions,
    sppo_loss,
    stability="stable with clipped gradients: the loss is a large square",
    when="rounds of the model's own answers, ranked, each round starting from the last",
    paper="https://arxiv.org/abs/2405.00675",
    beta="0.001 (the paper, as 1 / eta) to 0.1",
    beta_range=(0.001, 0.1),
)
