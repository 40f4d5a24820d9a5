"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from penchant.core.findings import Finding
from penchant.methods.base import Facts, LossOutput, Method, MethodOptions, Needs
from penchant.methods.inputs import LabelInputs

BALANCE = (1.0, 4 / 3)
"""Sane `desirable_weight * num_desirable : undesirable_weight * num_undesirable` (Eq. 8)."""


class KTOOptions(MethodOptions):
    """Options of KTO."""

    beta: float = Field(
        0.1, gt=0, description="How fast gains and losses saturate: smaller strays further."
    )
    desirable_weight: float = Field(1.0, gt=0, description="Weight of the desirable examples.")
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of the undesirable examples.")
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="kto (the paper's), or apo_zero_unpaired, which needs no KL estimate."
    )


def kto_loss(inputs: LabelInputs, options: KTOOptions) -> LossOutput:
    """KTO on single completions that were found good or bad.

    Args:
        inputs: summed log-probabilities and labels, [examples]; the scalar `kl` counts for
            `loss_type` kto only.
        options: `beta`, `desirable_weight`, `undesirable_weight`, `loss_type`.

    Returns:
        Losses and metrics, [examples]. Implicit rewards are `beta * log(policy / reference)`.

    References:
        Eq. 7 of Ethayarajh et al. 2024, lambda_D and lambda_U being the weights; apo_zero_unpaired
        is Eq. 7 of D'Oosterlinck et al. 2024 (https://arxiv.org/abs/2408.06266), its two terms
        taken for examples of their own.
    """
    import torch

    log_ratio = inputs.completion - inputs.ref_completion
    uses_kl = options.loss_type == "kto"
    gain = log_ratio - inputs.kl if uses_kl else log_ratio
    gain = torch.where(inputs.desirable, gain, -gain)
    weight = torch.where(inputs.desirable, options.desirable_weight, options.undesirable_weight)
    # 1 - sigmoid(x) = sigmoid(-x), exact for large x
    loss = weight.to(gain.dtype) * torch.sigmoid(-options.beta * gain)

    metrics = {"reward": options.beta * log_ratio.detach(), "logprob": inputs.completion.detach()}
    by_label = {
        f"{name}/{label}": value.masked_fill(~of_label, torch.nan)
        for label, of_label in (("chosen", inputs.desirable), ("rejected", ~inputs.desirable))
        for name, value in metrics.items()
    }
    return LossOutput(
        loss, by_label | ({"kl": inputs.kl.detach().expand(len(loss))} if uses_kl else {})
    )


def weight_advice(
    num_desirable: int, num_undesirable: int, desirable_weight: float, undesirable_weight: float
) -> str | None:
    """Say how to weight unbalanced data; None where the weighted ratio is in `BALANCE`.

    Args:
        num_desirable, num_undesirable: examples to train on.
        desirable_weight, undesirable_weight: as the options have them, above 0.
    """
    if not (num_desirable and num_undesirable):
        missing = "undesirable" if num_desirable else "desirable"
        return f"no example is {missing}: KTO learns from both kinds, and no weight makes up for it"
    desirable, undesirable = num_desirable * desirable_weight, num_undesirable * undesirable_weight
    low, high = BALANCE
    # the intervals below are rounded, and whoever follows them to their ends should hear no more
    if 0.99 * low <= desirable / undesirable <= 1.01 * high:
        return None
    return (
        "desirable_weight * desirable : undesirable_weight * undesirable examples is "
        f"{desirable_weight:g} * {num_desirable} : {undesirable_weight:g} * {num_undesirable} "
        f"= {desirable / undesirable:.3g}, outside 1:1 to 4:3; either set desirable_weight to "
        f"{low * undesirable / num_desirable:.3g} to {high * undesirable / num_desirable:.3g} or "
        f"undesirable_weight to {desirable / num_undesirable / high:.3g} to "
        f"{desirable / num_undesirable / low:.3g}, not both"
    )


def kto_warnings(examples: Sequence[Any], options: KTOOptions) -> list[Finding]:
    """What is unbalanced in the training examples, which have a `desirable`."""
    good = sum(example.desirable for example in examples)
    weights = options.desirable_weight, options.undesirable_weight
    advice = weight_advice(good, len(examples) - good, *weights)
    if advice is None:
        return []
    remedy = "add examples of the rarer kind, or set one of the two weights"
    counts = {"num_desirable": good, "num_undesirable": len(examples) - good}
    return [Finding("kto-imbalance", "warning", advice, remedy, counts)]


KTO = Method(
    name="kto",
    title="Kahneman-Tversky Optimization",
    data="labels",
    needs_reference=True,
    options=KTOOptions,
    loss=kto_loss,
    needs=lambda options: Needs(mismatches=options.loss_type == "kto"),
    warnings=kto_warnings,
    facts=Facts(
        data="binary signal (good/bad)",
        models_in_memory="2 (policy and reference); 1 with LoRA",
        stability="stable",
        when="no pairwise data, only thumbs up and down",
        paper="https://arxiv.org/abs/2402.01306",
        learning_rate=5e-7,
        learning_rate_lora=5e-5,
        learning_rate_range=(5e-7, 5e-6),
        beta="0.1 usual; 0.01 to 0.5",
        beta_range=(0.01, 0.5),
    ),
)
