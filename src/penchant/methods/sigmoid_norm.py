"""Length-normalised DPO (Tülu 3, Lambert et al. 2024, https://arxiv.org/abs/2411.15124)."""

from __future__ import annotations

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import DivergenceOptions, compared_with_reference, finish, scores


class SigmoidNormOptions(DivergenceOptions):
    """Options of length-normalised DPO."""

    beta: float = Field(
        5.0, gt=0, description="Strength of the KL constraint, on log-ratios a token: 2 to 10."
    )


def sigmoid_norm_loss(inputs: PairInputs, options: SigmoidNormOptions) -> LossOutput:
    """DPO on log-ratios that are averaged over a completion's tokens.

    Args:
        inputs: summed log-probabilities and lengths, [pairs]; the reference's are required.
        options: `beta`, and the family's.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta` times the averages.

    References:
        The length-normalised DPO of section 5.1 of Lambert et al. 2024. Scores of an f-divergence
        are averaged after the divergence, as in TRL.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = scores(inputs, options)
    chosen, rejected = chosen / inputs.chosen_len, rejected / inputs.rejected_len
    loss = -logsigmoid(options.beta * (chosen - rejected))
    return finish(inputs, loss, (chosen, rejected), options)


SIGMOID_NORM = compared_with_reference(
    "sigmoid_norm",
    "Length-normalised DPO",
    SigmoidNormOptions,
    sigmoid_norm_loss,
    stability="stable",
    when="chosen and rejected differ much in length",
    paper="https://arxiv.org/abs/2411.15124",
    beta="5 (Tülu 3); 2 to 10",
    beta_range=(2.0, 10.0),
)
