"""Supervised fine-tuning (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155).

On the chosen completions of pairs, alone or as a term beside other losses.
"""

from __future__ import annotations

from penchant.methods.base import LossOutput, MethodOptions, PairInputs, pair_metrics
from penchant.methods.reference_free import alone, without_reference


class SFTOptions(MethodOptions):
    """Supervised fine-tuning has no options of its own."""


def sft_loss(inputs: PairInputs, options: SFTOptions) -> LossOutput:
    """Negative log-likelihood of the chosen completions, averaged over all their tokens.

    Args:
        inputs: summed log-probabilities and lengths, [pairs]; no reference is read.
        options: none.

    Returns:
        Losses, [pairs], whose mean is in nats per token of the global batch. Implicit rewards are
        average log-probs: how often the chosen completion has the higher one is the accuracy.
    """
    nll = inputs.nll()
    chosen = inputs.chosen / inputs.chosen_len
    rejected = inputs.rejected / inputs.rejected_len
    return LossOutput(nll, pair_metrics(inputs, chosen, rejected) | {"nll": nll.detach()})


SFT = without_reference(
    name="sft",
    title="Supervised fine-tuning on chosen completions",
    options=SFTOptions,
    loss=sft_loss,
    facts=alone(
        stability="most stable; learns nothing from what was rejected",
        when="a base model answers in no form yet, or as the yardstick that a method must beat",
        paper="https://arxiv.org/abs/2203.02155",
        learning_rate=1e-5,
        learning_rate_lora=1e-4,
        learning_rate_range=(1e-6, 5e-5),
    ),
)
