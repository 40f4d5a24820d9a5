"""Binary Classifier Optimization (Jung et al. 2024, https://arxiv.org/abs/2404.04656)."""

from __future__ import annotations

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import WeightedOptions, compared_with_reference, finish


class BCOOptions(WeightedOptions):
    """Options of BCO."""

    beta: float = Field(0.01, gt=0, description="Strength of the KL constraint.")


def bco_loss(inputs: PairInputs, options: BCOOptions) -> LossOutput:
    """BCO on pairs: each completion is told good from bad by itself.

    Takes sums of log-probabilities, `[pairs]`, the reference's too; returns losses and metrics,
    [pairs]. Implicit rewards are `beta * log(policy / reference)`.

    References:
        Section 4 of Jung et al. 2024 without its reward shift: the paper subtracts delta, a
        running mean of the rewards, from both; TRL 1.16 ("bco_pair") and this take it as 0.
    """
    from torch.nn.functional import logsigmoid

    ratios = inputs.log_ratios()
    chosen, rejected = (options.beta * ratio for ratio in ratios)
    return finish(inputs, -logsigmoid(chosen) - logsigmoid(-rejected), ratios, options)


BCO = compared_with_reference(
    "bco",
    "Binary Classifier Optimization",
    BCOOptions,
    bco_loss,
    stability="stable; the chosen completions become likelier",
    when="chosen and rejected are good and bad by themselves, not only beside each other",
    paper="https://arxiv.org/abs/2404.04656",
    beta="0.01 (the paper) to 0.1",
)
