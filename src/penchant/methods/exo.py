"""Efficient Exact Optimization (Ji et al. 2024, https://arxiv.org/abs/2402.00856)."""

from __future__ import annotations

import math

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import DivergenceOptions, compared_with_reference, finish, scores


class EXOOptions(DivergenceOptions):
    """Options of EXO."""

    label_smoothing: float = Field(
        1e-3, gt=0, lt=0.5, description="Probability that the rejected completion is the better."
    )


def exo_loss(inputs: PairInputs, options: EXOOptions) -> LossOutput:
    """EXO on pairs: the reverse KL from the policy's preference to the labels'.

    Args:
        inputs: summed log-probabilities, [pairs]; the reference's are required.
        options: `beta`, `label_smoothing`, and the family's.

    Returns:
        Losses and metrics, [pairs]. The loss is 0 where `beta * margin` is
        `log((1 - label_smoothing) / label_smoothing)`.

    References:
        EXO-pref, Eq. 16 of Ji et al. 2024 with two completions.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = scores(inputs, options)
    margin = options.beta * (chosen - rejected)
    keep, flip = math.log1p(-options.label_smoothing), math.log(options.label_smoothing)
    loss = margin.sigmoid() * (logsigmoid(margin) - keep)
    loss = loss + (-margin).sigmoid() * (logsigmoid(-margin) - flip)
    return finish(inputs, loss, (chosen, rejected), options)


EXO = compared_with_reference(
    "exo",
    "Efficient Exact Optimization",
    EXOOptions,
    exo_loss,
    stability="stable; margins have a finite target",
    when="one mode of good answers matters more than covering all of them",
    paper="https://arxiv.org/abs/2402.00856",
    beta="0.1 usual; 0.05 to 0.5",
)
