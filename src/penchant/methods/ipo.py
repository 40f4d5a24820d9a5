"""Identity Preference Optimization (Azar et al. 2023, https://arxiv.org/abs/2310.12036)."""

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


class IPOOptions(MethodOptions):
    """Options of IPO."""

    beta: float = Field(
        0.1, gt=0, description="The paper's tau: margins are pulled towards 1 / (2 beta)."
    )
    log_ratio: Literal["mean", "sum"] = Field(
        "mean", description="Log-ratios averaged over a completion's tokens, or summed (the paper)."
    )


def ipo_loss(inputs: PairInputs, options: IPOOptions) -> LossOutput:
    """IPO on pairs.

    Args:
        inputs: summed log-probabilities and lengths, [pairs]; the reference's are required.
        options: `beta`, `log_ratio`.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta` times the log-ratio in use.

    References:
        Eq. 17 of Azar et al. 2023, tau written beta. The average over tokens is not in the paper:
        the authors confirmed to TRL that their results use it, and it keeps the target margin
        1 / (2 beta) meaningful whatever the lengths.
    """
    chosen_ratio, rejected_ratio = inputs.log_ratios()
    if options.log_ratio == "mean":
        chosen_ratio = chosen_ratio / inputs.chosen_len
        rejected_ratio = rejected_ratio / inputs.rejected_len
    loss = (chosen_ratio - rejected_ratio - 1 / (2 * options.beta)) ** 2
    return LossOutput(
        loss, pair_metrics(inputs, options.beta * chosen_ratio, options.beta * rejected_ratio)
    )


IPO = Method(
    name="ipo",
    title="Identity Preference Optimization",
    data="pairs",
    needs_reference=True,
    options=IPOOptions,
    loss=ipo_loss,
    facts=Facts(
        data="pairwise preferences",
        models_in_memory="2 (policy and reference); 1 with LoRA or cached reference",
        stability="more stable than DPO",
        when="DPO over-fits the preferences: few pairs, or nearly deterministic ones",
        paper="https://arxiv.org/abs/2310.12036",
        learning_rate=1e-6,
        learning_rate_lora=5e-5,
        learning_rate_range=(5e-7, 5e-6),
    ),
)
