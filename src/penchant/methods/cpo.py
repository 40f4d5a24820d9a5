"""Contrastive Preference Optimization (Xu et al. 2024, https://arxiv.org/abs/2401.08417)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from penchant.methods.base import LossOutput, MethodOptions, PairInputs, smoothed
from penchant.methods.reference_free import alone, with_nll, without_reference

if TYPE_CHECKING:
    from torch import Tensor


class CPOOptions(MethodOptions):
    """Options of CPO."""

    beta: float = Field(
        0.1, gt=0, description="Scale of the margin; for ipo margins aim at 1 / (2 beta)."
    )
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field(
        "sigmoid",
        description="sigmoid (the paper's), hinge, or ipo (on log-probs averaged over tokens).",
    )
    cpo_alpha: float = Field(
        1.0, ge=0, description="Weight of the chosen completion's negative log-likelihood."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of flipped labels."
    )


def cpo_loss(inputs: PairInputs, options: CPOOptions) -> LossOutput:
    """CPO on pairs.

    Args:
        inputs: summed log-probabilities and lengths, [pairs]; no reference.
        options: `beta`, `loss_type`, `cpo_alpha`, `label_smoothing`.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta * log policy`, averaged over tokens
        for ipo.

    References:
        Eq. 3 of Xu et al. 2024 (DPO's loss under a uniform reference) and its L_NLL, which is
        averaged over the batch's completion tokens, as in TRL, not summed. hinge and ipo are TRL's.
    """
    chosen, rejected = inputs.chosen, inputs.rejected
    if options.loss_type == "ipo":
        chosen, rejected = chosen / inputs.chosen_len, rejected / inputs.rejected_len
    contrast = smoothed(
        lambda margin: _contrast(margin, options), chosen - rejected, options.label_smoothing
    )
    rewards = options.beta * chosen, options.beta * rejected
    return with_nll(inputs, contrast, rewards, options.cpo_alpha)


def _contrast(margin: Tensor, options: CPOOptions) -> Tensor:
    """Loss of differences of log-probabilities, [pairs]."""
    from torch.nn.functional import logsigmoid, relu

    if options.loss_type == "hinge":
        return relu(1 - options.beta * margin)
    if options.loss_type == "ipo":
        return (margin - 1 / (2 * options.beta)) ** 2
    return -logsigmoid(options.beta * margin)


CPO = without_reference(
    name="cpo",
    title="Contrastive Preference Optimization",
    options=CPOOptions,
    loss=cpo_loss,
    facts=alone(
        stability="stable",
        when="DPO-like, with an explicit preference margin",
        paper="https://arxiv.org/abs/2401.08417",
        learning_rate=5e-7,
        learning_rate_lora=5e-5,
        learning_rate_range=(5e-7, 5e-6),
        beta="0.1 usual; 0.1 to 0.5",
        beta_range=(0.01, 0.5),
    ),
)
