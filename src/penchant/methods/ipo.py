"""Identity Preference Optimization (Azar et al. 2023, https://arxiv.org/abs/2310.12036)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from penchant.methods.base import LossOutput, PairInputs
from penchant.methods.paired import DivergenceOptions, compared_with_reference, finish, scores

# Its square is finite in fp32; only an f-divergence gets there.
MAX_MARGIN = 1e18


class IPOOptions(DivergenceOptions):
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
        options: `beta`, `log_ratio`, and the family's.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta` times the log-ratio in use.

    References:
        Eq. 17 of Azar et al. 2023, tau written beta. The average over tokens is not in the paper:
        the authors confirmed to TRL that their results use it, and it keeps the target margin
        1 / (2 beta) meaningful whatever the lengths. Scores of an f-divergence, of which the paper
        says nothing either, are averaged after the divergence, as in TRL.
    """
    chosen, rejected = scores(inputs, options)
    if options.log_ratio == "mean":
        chosen, rejected = chosen / inputs.chosen_len, rejected / inputs.rejected_len
    margin = (chosen - rejected).clamp(-MAX_MARGIN, MAX_MARGIN)
    loss = (margin - 1 / (2 * options.beta)) ** 2
    return finish(inputs, loss, (chosen, rejected), options)


IPO = compared_with_reference(
    "ipo",
    "Identity Preference Optimization",
    IPOOptions,
    ipo_loss,
    stability="more stable than DPO",
    when="DPO over-fits the preferences: few pairs, or nearly deterministic ones",
    paper="https://arxiv.org/abs/2310.12036",
    beta="0.1 usual; 0.01 to 0.5: margins aim at 1 / (2 beta)",
)
