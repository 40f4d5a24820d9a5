"""Scores of a packed batch as a method on pairs takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from penchant.data.batch import segment_sums
from penchant.methods import PairInputs
from penchant.models.reference import weighted_sums

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import TokenBatch


def pair_inputs(
    scores: Tensor, batch: TokenBatch, ref_sums: Tensor | None, weights: Tensor | None = None
) -> PairInputs:
    """A batch of pairs as a method takes it.

    Args:
        scores: `[N]` log-probs, or `[2, N]` with log collision probabilities below.
        batch: where they belong; two completions a prompt.
        ref_sums: `[2 * pairs]`, the reference's.
        weights: `[N]`, of each token in the sums; default: all 1.
    """
    logprobs, collisions = scores.unbind(0) if scores.ndim == 2 else (scores, None)
    count = len(batch.ends)
    plain = segment_sums(batch, logprobs)
    sums = plain if weights is None else weighted_sums(batch, logprobs, weights)
    chosen, rejected = sums[:count].view(-1, 2).unbind(1)
    chosen_len, rejected_len = batch.completion_lengths.view(-1, 2).unbind(1)
    inputs = PairInputs(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=None if ref_sums is None else ref_sums.view(-1, 2)[:, 0],
        ref_rejected=None if ref_sums is None else ref_sums.view(-1, 2)[:, 1],
        chosen_len=chosen_len,
        rejected_len=rejected_len,
    )
    if weights is not None:
        inputs = replace(inputs, chosen_nll=-plain[:count:2])
    if len(batch.prompt_lengths):
        inputs = replace(inputs, prompt=plain[count:], prompt_len=batch.prompt_lengths)
    if collisions is not None:
        # WPO Eq. 2: how likely the policy finds each token beside its own draws, averaged.
        alignment = segment_sums(batch, (logprobs - collisions).detach())[:count]
        weight = (alignment / batch.completion_lengths).exp()
        inputs = replace(inputs, chosen_weight=weight[::2], rejected_weight=weight[1::2])
    return inputs


def tail_weights(batch: TokenBatch, tail_weight: float) -> Tensor | None:
    """`[N]`: 1 up to the shorter completion's length, `tail_weight` after it (LD-DPO)."""
    if tail_weight == 1.0:
        return None
    lengths = batch.segment_lengths
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(len(batch.targets), device=lengths.device) - starts[batch.segment_index]
    shared = lengths.clone()
    completions = batch.completion_lengths.view(-1, 2)
    shared[: len(batch.ends)] = completions.min(1).values.repeat_interleave(2)
    return torch.where(position < shared[batch.segment_index], 1.0, tail_weight)
