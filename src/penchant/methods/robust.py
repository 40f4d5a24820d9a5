"""Robust DPO (Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409)."""

from __future__ import annotations

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import DivergenceOptions, compared_with_reference, finish, scores


class RobustOptions(DivergenceOptions):
    """Options of robust DPO."""

    label_smoothing: float = Field(
        0.1, ge=0, lt=0.5, description="Assumed share of flipped labels, which is corrected for."
    )


def robust_loss(inputs: PairInputs, options: RobustOptions) -> LossOutput:
    """Robust DPO on pairs: its mean over flipped labels is DPO's loss of the right ones.

    Args:
        inputs: summed log-probabilities, [pairs]; the reference's are required.
        options: `beta`, `label_smoothing`, and the family's.

    Returns:
        Losses and metrics, [pairs]. A loss can be negative and has no lower bound.

    References:
        Section 3.1 of Chowdhury et al. 2024: ((1 - s) loss - s loss of the flipped pair) /
        (1 - 2 s).
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = scores(inputs, options)
    margin, share = options.beta * (chosen - rejected), options.label_smoothing
    loss = (share * logsigmoid(-margin) - (1 - share) * logsigmoid(margin)) / (1 - 2 * share)
    return finish(inputs, loss, (chosen, rejected), options)


ROBUST = compared_with_reference(
    "robust",
    "Robust DPO",
    RobustOptions,
    robust_loss,
    stability="stable where the share of flipped labels is right; its loss has no lower bound",
    when="labels are noisy, and about what share of them is known",
    paper="https://arxiv.org/abs/2403.00409",
    beta="0.1 usual; 0.01 (the paper) to 0.5",
)
