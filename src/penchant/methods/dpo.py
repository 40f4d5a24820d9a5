"""Direct Preference Optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs, smoothed
from penchant.methods.paired import DivergenceOptions, compared_with_reference, finish, scores

if TYPE_CHECKING:
    from torch import Tensor


class DPOOptions(DivergenceOptions):
    """Options of DPO."""

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
        options: `beta`, `loss_type`, `label_smoothing`, and the family's.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta * log(policy / reference)`.

    References:
        Eq. 7 of Rafailov et al. 2023; label smoothing is conservative DPO, Eq. 3 of Mitchell's
        note (https://ericmitchell.ai/cdpo.pdf); hinge is Eq. 10 of SLiC-HF
        (https://arxiv.org/abs/2305.10425) on the same margins.
    """
    from torch.nn.functional import logsigmoid, relu

    def contrast(margin: Tensor) -> Tensor:
        return relu(1 - margin) if options.loss_type == "hinge" else -logsigmoid(margin)

    chosen, rejected = scores(inputs, options)
    # log(1 - sigmoid(x)) = logsigmoid(-x), stable for large x
    loss = smoothed(contrast, options.beta * (chosen - rejected), options.label_smoothing)
    return finish(inputs, loss, (chosen, rejected), options)


DPO = compared_with_reference(
    "dpo",
    "Direct Preference Optimization",
    DPOOptions,
    dpo_loss,
    stability="stable",
    when="the default: simple and effective",
    paper="https://arxiv.org/abs/2305.18290",
)
