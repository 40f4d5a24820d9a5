"""Simple Preference Optimization (Meng et al. 2024, https://arxiv.org/abs/2405.14734)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from penchant.methods.base import LossOutput, MethodOptions, PairInputs, smoothed
from penchant.methods.reference_free import alone, with_nll, without_reference

if TYPE_CHECKING:
    from torch import Tensor

MAX_EXPONENT = 20.0
"""Of AlphaPO's power: e^20 is far beyond any reward that trains, and its square is still finite."""


class SimPOOptions(MethodOptions):
    """Options of SimPO."""

    beta: float = Field(2.0, gt=0, description="Scale of the length-averaged log-probs: 2 to 10.")
    gamma: float = Field(
        1.0, ge=0, description="Target reward margin, tuned with beta: 0.25 to 0.5 times beta."
    )
    alpha: float = Field(
        0.0, ge=-1, le=1, description="Shape of the reward (AlphaPO); 0: the log-prob itself."
    )
    cpo_alpha: float = Field(
        0.0, ge=0, description="Weight of the chosen completion's negative log-likelihood."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of flipped labels."
    )


def simpo_loss(inputs: PairInputs, options: SimPOOptions) -> LossOutput:
    """SimPO on pairs.

    Args:
        inputs: summed log-probabilities and lengths, [pairs]; no reference.
        options: `beta`, `gamma`, `alpha`, `cpo_alpha`, `label_smoothing`.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta` times the shaped average log-prob.

    References:
        Eq. 6 of Meng et al. 2024; `alpha` is AlphaPO (https://arxiv.org/abs/2501.03884);
        `cpo_alpha` and `label_smoothing` are TRL's.
    """
    from torch.nn.functional import logsigmoid

    chosen = options.beta * shaped(inputs.chosen / inputs.chosen_len, options.alpha)
    rejected = options.beta * shaped(inputs.rejected / inputs.rejected_len, options.alpha)
    contrast = smoothed(
        lambda margin: -logsigmoid(margin),
        chosen - rejected - options.gamma,
        options.label_smoothing,
    )
    return with_nll(inputs, contrast, (chosen, rejected), options.cpo_alpha)


def shaped(mean_logprob: Tensor, alpha: float) -> Tensor:
    """AlphaPO's (1 - p^-alpha) / alpha of p = exp(mean_logprob), [pairs]; alpha 0 is its limit.

    It is flat where p^-alpha would pass e^20, that is below 20 / alpha nats per token.
    """
    if alpha == 0:
        return mean_logprob
    return -(-alpha * mean_logprob).clamp(max=MAX_EXPONENT).expm1() / alpha


SIMPO = without_reference(
    name="simpo",
    title="Simple Preference Optimization",
    options=SimPOOptions,
    loss=simpo_loss,
    facts=alone(
        stability="stable",
        when="reference-free and length-normalized; often outperforms DPO",
        paper="https://arxiv.org/abs/2405.14734",
        learning_rate=5e-7,
        learning_rate_lora=5e-5,
        learning_rate_range=(3e-7, 5e-6),
        beta="2.0 to 2.5; up to 10",
        beta_range=(2.0, 10.0),
    ),
)
