"""Noise Contrastive Alignment (Chen et al. 2024, https://arxiv.org/abs/2402.05369)."""

from __future__ import annotations

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import WeightedOptions, compared_with_reference, finish


class NCAOptions(WeightedOptions):
    """Options of NCA."""

    beta: float = Field(
        0.01, gt=0, description="Strength of the KL constraint (the paper's alpha)."
    )


def nca_loss(inputs: PairInputs, options: NCAOptions) -> LossOutput:
    """NCA on pairs: rewards are held near 0, and the chosen completion's above it.

    Takes sums of log-probabilities, `[pairs]`, the reference's too; returns losses and metrics,
    [pairs]. Implicit rewards are `beta * log(policy / reference)`.

    References:
        Section 4.1 of Chen et al. 2024, for two completions and a preference instead of rewards.
    """
    from torch.nn.functional import logsigmoid

    ratios = inputs.log_ratios()
    chosen, rejected = (options.beta * ratio for ratio in ratios)
    loss = -logsigmoid(chosen) - 0.5 * (logsigmoid(-chosen) + logsigmoid(-rejected))
    return finish(inputs, loss, ratios, options)


NCA = compared_with_reference(
    "nca",
    "Noise Contrastive Alignment",
    NCAOptions,
    nca_loss,
    stability="stable; the chosen completions stay likely",
    when="DPO makes the chosen completions less likely, as in reasoning",
    paper="https://arxiv.org/abs/2402.05369",
    beta="0.01 (the paper) to 0.1",
)
