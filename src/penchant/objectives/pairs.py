"""Pairs: summed log-probabilities of two completions after one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.evaluation import Evaluation
from penchant.data.batch import num_trained
from penchant.methods import LossOutput, Needs, PairInputs
from penchant.methods.base import accuracy
from penchant.models.reference import Progress, weighted_sums
from penchant.models.scoring import segment_sums
from penchant.objectives.base import LaidOut, Parts

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Group, TokenBatch
    from penchant.data.source import StepBatch
    from penchant.data.tokenise import TokenisedPair


@dataclass(frozen=True)
class Shared:
    """What the micro-batches of one global batch share.

    Attributes:
        mean_chosen_len, mean_prompt_len: over the whole batch.
        batch: all its inputs, where the method asks for them.
        references: what the reference said of each micro-batch when `batch` was made, chosen and
            rejected, by the identity of the micro-batch: it need not be asked again.
    """

    mean_chosen_len: float
    mean_prompt_len: float
    batch: PairInputs | None = None
    references: Mapping[int, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)


class PairObjective:
    """The objective of every pairwise method on a language model."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.needs: Needs = parts.method.needs(parts.options)
        self._laid_out = LaidOut(self._lay_out)
        self.look_ahead = self._laid_out.look_ahead

    def _lay_out(self, examples: Sequence[TokenisedPair]) -> tuple[list[Group], TokenBatch]:
        groups = [example.group() for example in examples]
        return groups, self.parts.scorer.batch(groups, with_prompts=self.needs.prompt)

    def prepare(self, model: torch.nn.Module, step: StepBatch[TokenisedPair]) -> Shared:
        examples = step.examples
        shared = Shared(
            sum(num_trained(e.chosen) for e in examples) / len(examples),
            sum(len(e.prompt) - 1 for e in examples) / len(examples),
        )
        alone = len(step.micro_batches) == 1 and len(step.micro_batches[0][0]) == len(examples)
        if not self.needs.whole_batch or alone:
            return shared
        with torch.no_grad():
            # Stand-ins too: a distributed wrapper waits for every process in every pass.
            own = [self._inputs(model, examples, shared)[0] for examples, _ in step.micro_batches]
        weighted = list(zip(own, step.micro_batches, strict=True))
        device = self.parts.scorer.device
        meet = device if self.parts.team.size == 1 else torch.device("cpu")
        counted = [_moved(inputs, meet) for inputs, (_, weight) in weighted if weight]
        return replace(
            shared,
            batch=_moved(joined([*chain(*self.parts.team.gather(counted))]), device),
            references={
                id(examples): (inputs.ref_chosen, inputs.ref_rejected)
                for inputs, (examples, _) in weighted
            },
        )

    def __call__(
        self, model: torch.nn.Module, examples: Sequence[TokenisedPair], shared: Shared
    ) -> tuple[LossOutput, int]:
        inputs, num_tokens = self._inputs(model, examples, shared)
        return self.parts.method.loss(inputs, self.parts.options), num_tokens

    def _inputs(
        self, model: torch.nn.Module, examples: Sequence[TokenisedPair], shared: Shared
    ) -> tuple[PairInputs, int]:
        groups, batch = self._laid_out(examples)
        weights = tail_weights(batch, self.needs.tail_weight)
        reference, known = self.parts.reference, shared.references.get(id(examples))
        ref_sums = None
        if reference is not None and known is None:
            ref_sums = reference.sums(groups, batch, weights)
        scores = model(batch, also="collisions") if self.needs.weights else model(batch)
        inputs = pair_inputs(scores, batch, ref_sums, weights)
        if known is not None:
            inputs = replace(inputs, ref_chosen=known[0], ref_rejected=known[1])
        inputs = replace(
            inputs,
            mean_chosen_len=shared.mean_chosen_len,
            mean_prompt_len=shared.mean_prompt_len,
            batch=shared.batch,
        )
        return inputs, batch.num_tokens

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[TokenisedPair], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        from penchant.objectives.held_out import TokenMeans, batches, mean, score_both

        scorer, team = self.parts.scorer, self.parts.team
        with scorer.evaluating():
            parts: list[PairInputs] = []
            tokens = TokenMeans()
            for some, counts in batches(examples, batch_size, progress, team):
                groups = [example.group() for example in some]
                batch = scorer.batch(groups)
                weights = tail_weights(batch, self.needs.tail_weight)
                scored = score_both(scorer, self.parts.reference, groups, batch, weights)
                inputs = pair_inputs(scored.logprobs, batch, scored.ref_sums, weights)
                if self.needs.prompt or self.needs.weights:
                    inputs = self._with_extras(inputs, some)
                if counts:
                    tokens.add(scored)
                    parts.append(_moved(inputs, "cpu"))
        inputs = joined(team.together(parts))
        output = self.parts.method.loss(inputs, self.parts.options)
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

    def _with_extras(self, inputs: PairInputs, examples: Sequence[TokenisedPair]) -> PairInputs:
        """Prompts' log-probs and weights, which comparing two models leaves out."""
        groups = [example.group() for example in examples]
        batch = self.parts.scorer.batch(groups, with_prompts=self.needs.prompt)
        more = pair_inputs(self.parts.scorer(batch, also="collisions"), batch, None, None)
        return replace(
            inputs,
            prompt=more.prompt,
            prompt_len=more.prompt_len,
            chosen_weight=more.chosen_weight,
            rejected_weight=more.rejected_weight,
        )


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


def joined(parts: Sequence[PairInputs]) -> PairInputs:
    """Several batches as one; means over them are left to be computed again."""
    columns: dict[str, Any] = {}
    for name, value in vars(parts[0]).items():
        if isinstance(value, torch.Tensor):
            columns[name] = torch.cat([getattr(part, name) for part in parts])
    columns |= {"mean_chosen_len": None, "mean_prompt_len": None, "batch": None}
    return replace(parts[0], **columns)


def _moved(inputs: PairInputs, device: torch.device | str) -> PairInputs:
    tensors: dict[str, Any] = {
        name: value.to(device)
        for name, value in vars(inputs).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(inputs, **tensors)
