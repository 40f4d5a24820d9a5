"""Held-out pairs, evaluated: both models scored, and all batches as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.evaluation import Evaluation
from penchant.methods import Needs, PairInputs
from penchant.methods.base import accuracy
from penchant.objectives.held_out import TokenMeans, batches, mean, score_both
from penchant.objectives.pair_inputs import pair_inputs, tail_weights

if TYPE_CHECKING:
    from penchant.data.batch import Group
    from penchant.data.tokenise import TokenisedPair
    from penchant.models.reference import Progress
    from penchant.objectives.base import Parts

# What a pass without the reference adds to the inputs of a loss.
EXTRAS = ("prompt", "prompt_len", "chosen_weight", "rejected_weight")


@torch.no_grad()
def evaluate_pairs(
    parts: Parts, examples: Sequence[TokenisedPair], *, batch_size: int, progress: Progress
) -> Evaluation:
    """The policy on held-out pairs, as `Objective.evaluate`."""
    scorer, team = parts.scorer, parts.team
    needs: Needs = parts.method.needs(parts.options)
    extras = needs.prompt or needs.weights
    with scorer.evaluating():
        counted: list[PairInputs] = []
        tokens = TokenMeans()
        for some, counts in batches(examples, batch_size, progress, team):
            groups = [example.group() for example in some]
            if extras and parts.reference is None:  # one pass tells everything
                inputs = _alone(parts, groups, needs)
                counted += [moved(inputs, "cpu")] if counts else []
                continue
            batch = scorer.batch(groups)
            weights = tail_weights(batch, needs.tail_weight)
            scored = score_both(scorer, parts.reference, groups, batch, weights)
            inputs = pair_inputs(scored.logprobs, batch, scored.ref_sums, weights)
            if extras:
                inputs = _with_extras(parts, inputs, groups)
            if counts:
                tokens.add(scored)
                counted.append(moved(inputs, "cpu"))
    inputs = joined(team.together(counted))
    output = parts.method.loss(inputs, parts.options)
    metrics = output.metrics
    return Evaluation(
        num_examples=len(examples),
        loss=mean(output.per_example),
        accuracy=mean(metrics["reward/accuracy"]),
        margin=mean(metrics["reward/margin"]),
        reward_chosen=mean(metrics["reward/chosen"]),
        reward_rejected=mean(metrics["reward/rejected"]),
        logprob_accuracy=mean(accuracy(inputs.chosen - inputs.rejected)),
        logprob_chosen=mean(metrics["logprob/chosen"]),
        logprob_rejected=mean(metrics["logprob/rejected"]),
        **tokens.means(team),
    )


def _alone(parts: Parts, groups: Sequence[Group], needs: Needs) -> PairInputs:
    """Everything that the policy says of pairs, without a reference."""
    batch = parts.scorer.batch(groups, with_prompts=needs.prompt)
    weights = tail_weights(batch, needs.tail_weight)
    return pair_inputs(parts.scorer(batch, also="collisions"), batch, None, weights)


def _with_extras(parts: Parts, inputs: PairInputs, groups: Sequence[Group]) -> PairInputs:
    """Prompts' log-probs and weights, which comparing two models leaves out."""
    more = _alone(parts, groups, replace(parts.method.needs(parts.options), tail_weight=1.0))
    return replace(inputs, **{name: getattr(more, name) for name in EXTRAS})


def joined(parts: Sequence[PairInputs]) -> PairInputs:
    """Several batches as one; means over them are left to be computed again."""
    columns: dict[str, Any] = {}
    for name, value in vars(parts[0]).items():
        if isinstance(value, torch.Tensor):
            columns[name] = torch.cat([getattr(part, name) for part in parts])
    columns |= {"mean_chosen_len": None, "mean_prompt_len": None, "batch": None}
    return replace(parts[0], **columns)


def moved(inputs: PairInputs, device: torch.device | str) -> PairInputs:
    """The inputs on a device."""
    tensors: dict[str, Any] = {
        name: value.to(device)
        for name, value in vars(inputs).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(inputs, **tensors)
