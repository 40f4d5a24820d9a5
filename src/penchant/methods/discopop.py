"""DiscoPOP (Lu et al. 2024, https://arxiv.org/abs/2406.08414)."""

from __future__ import annotations

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import (
    MAX_EXPONENT,
    DivergenceOptions,
    compared_with_reference,
    finish,
    scores,
)


class DiscoPOPOptions(DivergenceOptions):
    """Options of DiscoPOP."""

    beta: float = Field(0.05, gt=0, description="Strength of the KL constraint.")
    discopop_tau: float = Field(
        0.05, gt=0, description="How sharply the loss turns from logistic to exponential at 0."
    )


def discopop_loss(inputs: PairInputs, options: DiscoPOPOptions) -> LossOutput:
    """The log-ratio modulated loss, logistic for wrong margins and exponential for right ones.

    Args:
        inputs: summed log-probabilities, [pairs]; the reference's are required.
        options: `beta`, `discopop_tau`, and the family's.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta * log(policy / reference)`.

    References:
        Eq. 5 of Lu et al. 2024. The factors of the exponential term are multiplied as logarithms:
        TRL's product is inf * 0 for very wrong margins. Where tau is over 1 it grows without
        bound; the exponent is cut off at `MAX_EXPONENT`.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = scores(inputs, options)
    margin = options.beta * (chosen - rejected)
    share = margin / options.discopop_tau
    logistic = -logsigmoid(margin) * (-share).sigmoid()
    exponential = (logsigmoid(share) - margin).clamp(max=MAX_EXPONENT).exp()
    return finish(inputs, logistic + exponential, (chosen, rejected), options)


DISCOPOP = compared_with_reference(
    "discopop",
    "DiscoPOP",
    DiscoPOPOptions,
    discopop_loss,
    stability="not convex: margins near 0 can get stuck just below it",
    when="a loss that was found by search, good on general chat, is to be tried",
    paper="https://arxiv.org/abs/2406.08414",
    beta="0.05 (the paper) to 0.1",
)
