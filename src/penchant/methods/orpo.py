"""Odds Ratio Preference Optimization (Hong et al. 2024, https://arxiv.org/abs/2403.07691)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from penchant.methods.base import LossOutput, MethodOptions, Needs, PairInputs, pair_metrics
from penchant.methods.reference_free import alone, without_reference

if TYPE_CHECKING:
    from torch import Tensor

NEARLY_CERTAIN = -1e-6
"""Log-probabilities above it count as it where 1 - p is wanted, which else has no logarithm."""


class ORPOOptions(MethodOptions):
    """Options of ORPO."""

    beta: float = Field(
        0.1, gt=0, description="The paper's lambda: weight of the odds ratio beside the NLL."
    )
    nll_scope: Literal["all", "completion"] = Field(
        "all",
        description="Tokens learnt by supervision: prompt and chosen completion (TRL), or the "
        "completion alone (the paper).",
    )


def orpo_loss(inputs: PairInputs, options: ORPOOptions) -> LossOutput:
    """ORPO on pairs.

    Args:
        inputs: summed log-probabilities and lengths, [pairs], the prompts' too for `nll_scope`
            all; no reference.
        options: `beta`, `nll_scope`.

    Returns:
        Losses and metrics, [pairs]. Implicit rewards are `beta` times the average log-prob.

    References:
        Eqs. 4, 6 and 7 of Hong et al. 2024, lambda written beta.
    """
    from torch.nn.functional import logsigmoid

    chosen = inputs.chosen / inputs.chosen_len
    rejected = inputs.rejected / inputs.rejected_len
    nll = inputs.nll(with_prompt=options.nll_scope == "all")
    log_odds_ratio = log_odds(chosen) - log_odds(rejected)
    metrics = pair_metrics(inputs, options.beta * chosen, options.beta * rejected)
    metrics |= {"nll": nll.detach(), "log_odds_ratio": log_odds_ratio.detach()}
    return LossOutput(nll - options.beta * logsigmoid(log_odds_ratio), metrics)


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logprob), elementwise, in fp32 or better."""
    import torch

    logprob = logprob.to(torch.promote_types(logprob.dtype, torch.float32))
    return logprob - log1mexp(logprob)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)), elementwise; x above -1e-6 counts as -1e-6, so that all is finite.

    References:
        Maechler 2012, https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf
    """
    import torch

    x = x.clamp(max=NEARLY_CERTAIN)
    # each branch loses its digits where the other is taken
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


ORPO = without_reference(
    name="orpo",
    title="Odds Ratio Preference Optimization",
    options=ORPOOptions,
    loss=orpo_loss,
    needs=lambda options: Needs(prompt=options.nll_scope == "all"),
    facts=alone(
        stability="most stable",
        when="no overhead of a reference model is wanted",
        paper="https://arxiv.org/abs/2403.07691",
        learning_rate=8e-6,
        learning_rate_lora=5e-5,
        learning_rate_range=(1e-6, 2e-5),
        beta="0.1 usual; 0.1 to 1",
        beta_range=(0.05, 1.0),
    ),
)
