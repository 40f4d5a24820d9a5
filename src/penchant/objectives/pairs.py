"""Pairs: summed log-probabilities of two completions after one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch

from penchant.data.batch import num_trained
from penchant.methods import LossOutput, Needs, PairInputs
from penchant.models.reference import Progress
from penchant.objectives.base import LaidOut, Parts
from penchant.objectives.pair_inputs import pair_inputs, tail_weights

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.core.evaluation import Evaluation
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
        from penchant.objectives.held_out_pairs import joined, moved

        with torch.no_grad():
            # Stand-ins too: a distributed wrapper waits for every process in every pass.
            own = [self._inputs(model, examples, shared)[0] for examples, _ in step.micro_batches]
        weighted = list(zip(own, step.micro_batches, strict=True))
        device = self.parts.scorer.device
        meet = device if self.parts.team.size == 1 else torch.device("cpu")
        counted = [moved(inputs, meet) for inputs, (_, weight) in weighted if weight]
        return replace(
            shared,
            batch=moved(joined([*chain(*self.parts.team.gather(counted))]), device),
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

    def evaluate(
        self, examples: Sequence[TokenisedPair], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        from penchant.objectives.held_out_pairs import evaluate_pairs

        return evaluate_pairs(self.parts, examples, batch_size=batch_size, progress=progress)
