"""Direct Preference Optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from penchant.methods.base import (
    Facts,
    LossOutput,
    Method,
    MethodOptions,
    PairInputs,
    pair_metrics,
)


class DPOOptions(MethodOptions):
    """Options of DPO."""

    beta: float = Field(
        0.1, gt=0, description="Strength of the KL constraint: 0.05 weak, 0.1 usual, 0.3 strong."
    )
    loss_type: Literal["sigmoid", "hinge"] = Field(
        "sigmoid", description="sigmoid (the paper's) or hinge (SLiC-HF's margin loss)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of flipped labels (conservative DPO)."
    )


def dpo_loss(inputs: PairInputs, options: DPOOptions) -> LossOutput:
    """DPO on pairs.

    Args:
        inputs: summed log-probabilities, [pairs]; the reference's are required.
        options: `beta`, `loss_type`, `label_smoothing`.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta * log(policy / reference)`.

    References:
        Eq. 7 of Rafailov et al. 2023; label smoothing is conservative DPO, Eq. 3 of Mitchell's
        note (https://ericmitchell.ai/cdpo.pdf); hinge is Eq. 10 of SLiC-HF
        (https://arxiv.org/abs/2305.10425) on the same margins.
    """
    from torch.nn.functional import logsigmoid, relu

    chosen_ratio, rejected_ratio = inputs.log_ratios()
    margin = options.beta * (chosen_ratio - rejected_ratio)
    if options.loss_type == "hinge":
        keep, flip = relu(1 - margin), relu(1 + margin)
    else:
        # log(1 - sigmoid(x)) = logsigmoid(-x), stable for large x
        keep, flip = -logsigmoid(margin), -logsigmoid(-margin)
    smoothing = options.label_smoothing
    loss = keep if smoothing == 0 else (1 - smoothing) * keep + smoothing * flip
    return LossOutput(
        loss, pair_metrics(inputs, options.beta * chosen_ratio, options.beta * rejected_ratio)
    )


DPO = Method(
    name="dpo",
    title="Direct Preference Optimization",
    data="pairs",
    needs_reference=True,
    options=DPOOptions,
    loss=dpo_loss,
    facts=Facts(
        data="pairwise preferences",
        models_in_memory="2 (policy and reference); 1 with LoRA or cached reference",
        stability="stable",
        when="the default: simple and effective",
        paper="https://arxiv.org/abs/2305.18290",
        learning_rate=1e-6,
        learning_rate_lora=5e-5,
        learning_rate_range=(5e-7, 5e-6),
    ),
)
