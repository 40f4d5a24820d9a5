"""Alignment via Optimal Transport (Melnyk et al. 2024, https://arxiv.org/abs/2406.05882)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from penchant.methods.base import LossOutput, Needs, PairInputs, smoothed
from penchant.methods.paired import ReferenceOptions, compared_with_reference, finish
from penchant.methods.paired import needs as family_needs

if TYPE_CHECKING:
    from torch import Tensor


class AOTOptions(ReferenceOptions):
    """Options of AOT; single pairs cannot be weighted, as no loss belongs to one alone."""

    paired: bool = Field(
        True,
        description="Compare margins of the policy with the reference's (true), "
        "or chosen with rejected completions whatever their prompts (false).",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of flipped labels."
    )


def aot_loss(inputs: PairInputs, options: AOTOptions) -> LossOutput:
    """AOT on pairs: two distributions are compared rank by rank, over the whole global batch.

    Args:
        inputs: summed log-probabilities, [pairs]; the reference's are required. The ranks are
            those in `inputs.batch`, without which these pairs are the whole batch.
        options: `beta`, `paired`, `label_smoothing`, and the family's.

    Returns:
        Losses and metrics, [pairs]. A pair's loss is that of its margin's rank, or unpaired of its
        chosen completion's. Values and gradients add up to those of the sorted whole batch.

    References:
        Section 3 of Melnyk et al. 2024: the logistic loss of the difference of quantiles.
    """
    from torch.nn.functional import logsigmoid

    def violation(better: Tensor, worse: Tensor) -> Tensor:
        return smoothed(
            lambda margin: -logsigmoid(margin),
            options.beta * (better - worse),
            options.label_smoothing,
        )

    ratios = inputs.log_ratios()
    whole = inputs if inputs.batch is None else inputs.batch
    if options.paired:
        assert whole.ref_chosen is not None and whole.ref_rejected is not None
        policy, reference = whole.chosen - whole.rejected, whole.ref_chosen - whole.ref_rejected
        loss = _by_rank(inputs.chosen - inputs.rejected, policy, reference, violation)
    else:
        loss = _unpaired(ratios, whole.log_ratios(), violation)
    return finish(inputs, loss, ratios, options)


def _unpaired(
    ratios: tuple[Tensor, Tensor],
    whole: tuple[Tensor, Tensor],
    violation: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """[pairs]: each chosen log-ratio against the rejected one of its rank, and the reverse.

    Both sides of a rank have a gradient, but they are of two pairs, maybe in two micro-batches: the
    value is counted with the chosen, the rejected brings its gradient only.
    """
    chosen = _by_rank(ratios[0], whole[0], whole[1], violation)
    rejected = _by_rank(ratios[1], whole[1], whole[0], lambda own, other: violation(other, own))
    return chosen + rejected - rejected.detach()


def _by_rank(
    values: Tensor, whole: Tensor, others: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Loss of each value against the one of the same rank among others.

    Args:
        values: [pairs], differentiable; they occur in `whole`, to rounding.
        whole, others: [batch], in any order.
        loss: of values and partners, [pairs] each.

    Returns:
        [pairs]. Equal values share their ranks: each gets the mean loss over all of them, so that
        the sum is that of a sorted batch.
    """
    import torch

    whole, others = whole.detach().sort().values, others.detach().sort().values
    own = _nearest(values.detach(), whole)
    first = torch.searchsorted(whole, own)
    count = torch.searchsorted(whole, own, right=True) - first
    total = torch.zeros_like(values)
    for step in range(int(count.max())):
        partner = others[(first + step).clamp(max=len(others) - 1)]
        total = torch.where(step < count, total + loss(values, partner), total)
    return total / count


def _nearest(values: Tensor, ordered: Tensor) -> Tensor:
    """The element of `ordered` that is nearest to each value: a second pass may round otherwise."""
    import torch

    above = torch.searchsorted(ordered, values).clamp(max=len(ordered) - 1)
    below = (above - 1).clamp(min=0)
    nearer_below = values - ordered[below] < ordered[above] - values
    return torch.where(nearer_below, ordered[below], ordered[above])


def needs(options: AOTOptions) -> Needs:
    """The family's needs, and all of the batch."""
    return replace(family_needs(options), whole_batch=True)


AOT = compared_with_reference(
    "aot",
    "Alignment via Optimal Transport",
    AOTOptions,
    aot_loss,
    stability="stable in batches of 16 pairs and more",
    when="good answers as a whole are to beat bad ones, or the two sets belong to no pairs",
    paper="https://arxiv.org/abs/2406.05882",
    beta="0.1 usual; 0.01 to 0.5",
    needs=needs,
)
