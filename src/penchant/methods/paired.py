"""What the DPO family shares: options, scores of log-ratios, weighting, and an SFT term."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from penchant.methods.base import (
    Facts,
    LossOutput,
    Method,
    MethodOptions,
    Needs,
    PairInputs,
    pair_metrics,
)

if TYPE_CHECKING:
    from torch import Tensor

# exp(80) is finite in fp32; TRL's bound.
MAX_EXPONENT = 80.0


class ReferenceOptions(MethodOptions):
    """Options of every method of the family."""

    beta: float = Field(
        0.1, gt=0, description="Strength of the KL constraint: 0.05 weak, 0.1 usual, 0.3 strong."
    )
    ld_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the tokens by which a completion is the longer one (LD-DPO).",
    )
    rpo_alpha: float | None = Field(
        None,
        ge=0,
        description="Weight of the chosen completions' negative log-likelihood, added (RPO).",
    )


class WeightedOptions(ReferenceOptions):
    """Options of the methods whose losses belong to single pairs."""

    use_weighting: bool = Field(
        False, description="Weight pairs by how likely the policy would write them itself (WPO)."
    )


class DivergenceOptions(WeightedOptions):
    """Options of the methods that see only the difference of two scores (f-DPO)."""

    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        Field("reverse_kl", description="Which divergence from the reference is constrained.")
    )
    f_alpha_divergence_coef: float = Field(
        0.5, description="Alpha of alpha_divergence: 1 is reverse_kl, 0 is forward_kl."
    )


def scores(inputs: PairInputs, options: DivergenceOptions) -> tuple[Tensor, Tensor]:
    """f'(policy / reference) of the chosen and of the rejected completions, [pairs] each.

    References:
        f-DPO, Wang et al. 2023 (https://arxiv.org/abs/2309.16240), Table 1. As in TRL, alpha is 1
        minus the paper's. Exponents are cut off at `MAX_EXPONENT`, as TRL does for
        alpha_divergence: beyond it a score is constant.
    """
    chosen_ratio, rejected_ratio = inputs.log_ratios()
    return _score(chosen_ratio, options), _score(rejected_ratio, options)


def _score(ratio: Tensor, options: DivergenceOptions) -> Tensor:
    """f'(exp(ratio)), [pairs]; the ratio itself for reverse_kl."""
    from torch.nn.functional import logsigmoid

    if options.f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(ratio)
    power = {"reverse_kl": 0.0, "forward_kl": -1.0}.get(
        options.f_divergence_type, options.f_alpha_divergence_coef - 1
    )
    if abs(power) < 1e-6:  # the limit of (t^p - 1) / p for p to 0 is log t
        return ratio
    return (power * ratio).clamp(max=MAX_EXPONENT).expm1() / power


def finish(
    inputs: PairInputs,
    loss: Tensor,
    scores: tuple[Tensor, Tensor],
    options: ReferenceOptions,
) -> LossOutput:
    """Weight a loss and add an SFT term, where the options ask for them.

    Args:
        inputs: as the loss has them.
        loss: [pairs].
        scores: of the chosen and the rejected; `beta` times them are the implicit rewards.
        options: `beta`, `rpo_alpha`, `use_weighting`.

    References:
        Weights: Eq. 2 of WPO, Zhou et al. 2024 (https://arxiv.org/abs/2406.11827). The SFT term is
        that of RPO, Eq. 1 of Pang et al. 2024 (https://arxiv.org/abs/2404.19733), averaged over
        the batch's tokens (TRL's "sft") instead of each completion's; it is not weighted.
    """
    chosen, rejected = scores
    metrics = pair_metrics(inputs, options.beta * chosen, options.beta * rejected)
    if _weighted(options):
        assert inputs.chosen_weight is not None and inputs.rejected_weight is not None
        loss = inputs.chosen_weight * inputs.rejected_weight * loss
    if options.rpo_alpha is not None:
        nll = inputs.nll()
        metrics["nll"] = nll.detach()
        loss = loss + options.rpo_alpha * nll
    return LossOutput(loss, metrics)


def needs(options: ReferenceOptions) -> Needs:
    """What the options ask of the inputs."""
    tail_weight = 1.0 if options.ld_alpha is None else options.ld_alpha
    return Needs(weights=_weighted(options), tail_weight=tail_weight)


def _weighted(options: ReferenceOptions) -> bool:
    return isinstance(options, WeightedOptions) and options.use_weighting


def compared_with_reference(
    name: str,
    title: str,
    options: type[ReferenceOptions],
    loss: Callable[[PairInputs, Any], LossOutput],
    *,
    stability: str,
    when: str,
    paper: str,
    beta: str = "0.1 usual; 0.05 for strong signals, 0.3 for noisy ones, 0.5 for little change",
    beta_range: tuple[float, float] = (0.01, 0.5),
    needs: Callable[[Any], Needs] = needs,
) -> Method:
    """A method of DPO's family: its members differ in little but their loss."""
    facts = Facts(
        data="pairwise preferences",
        models_in_memory="2 (policy and reference); 1 with LoRA or cached reference",
        stability=stability,
        when=when,
        paper=paper,
        learning_rate=1e-6,
        learning_rate_lora=5e-5,
        learning_rate_range=(5e-7, 5e-6),
        beta=beta,
        beta_range=beta_range,
    )
    return Method(
        name=name,
        title=title,
        data="pairs",
        needs_reference=True,
        options=options,
        loss=loss,
        needs=needs,
        facts=facts,
    )
