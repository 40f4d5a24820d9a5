"""Labels: single completions that were found good or bad, sharing the tokens of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch

from penchant.core.evaluation import Evaluation
from penchant.core.machine import to_device, widest
from penchant.data.batch import Item, num_trained, segment_sums
from penchant.data.shared_prompts import share_prompts
from penchant.methods import LossOutput, Needs
from penchant.methods.base import accuracy
from penchant.methods.inputs import LabelInputs
from penchant.models.reference import Progress
from penchant.objectives.base import LaidOut, Parts
from penchant.objectives.held_out import Scored, TokenMeans, batches, by_length, mean, score_both

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Group, TokenBatch
    from penchant.data.source import StepBatch
    from penchant.data.tokenised import TokenisedLabel


@dataclass(frozen=True)
class Shared:
    """Of a whole global batch: the KL, and what the reference said on the way to it."""

    kl: Tensor
    ref_sums: dict[int, Tensor]
    """Scalars by the example's identity; empty where no KL was asked for."""


class Laid(NamedTuple):
    """A micro-batch as it is scored."""

    groups: list[Group]
    batch: TokenBatch
    position: Tensor
    """`[examples]`, which of the batch's completions each is."""
    desirable: Tensor
    """`[examples]`, bool."""


class LabelObjective:
    """The objective of methods that learn from single labelled completions.

    Args:
        parts: with a reference.
        examples: of the training data: where a batch has one prompt only, its mismatched
            completions come from there.
    """

    def __init__(self, parts: Parts, examples: Sequence[TokenisedLabel] = ()) -> None:
        self.parts = parts
        self.needs: Needs = parts.method.needs(parts.options)
        self.spare = _two_prompts(examples)
        self._laid_out = LaidOut(self._lay_out)
        self.look_ahead = self._laid_out.look_ahead

    def _lay_out(self, examples: Sequence[TokenisedLabel]) -> Laid:
        """A micro-batch, which prompts that are alike share."""
        groups, order = share_prompts([(e.prompt, e.completion) for e in examples])
        batch = self.parts.scorer.lay_out(groups)
        device = self.parts.scorer.device
        beside = [torch.tensor(order), torch.tensor([e.desirable for e in examples])]
        return Laid(groups, batch.to(device), *to_device(beside, device))

    def prepare(self, model: torch.nn.Module, step: StepBatch[TokenisedLabel]) -> Shared:
        device = self.parts.scorer.device
        if not self.needs.mismatches:
            return Shared(torch.zeros((), device=device), {})
        mismatches = self._mismatches(step.examples)
        own: list[Tensor] = []
        ref_sums: dict[int, Tensor] = {}
        for examples, weight in step.micro_batches:
            # Stand-ins too: a distributed wrapper waits for every process in every pass.
            others = [mismatches[id(e)] for e in examples]
            matched, differences = self._divergence(model, examples, others)
            ref_sums.update(zip(map(id, examples), matched, strict=True))
            own += [differences] if weight else []
        if self.parts.team.size > 1:  # one of the processes may have stand-ins alone
            values = [*chain.from_iterable(each.tolist() for each in own)]
            everywhere = torch.tensor(
                [*chain(*self.parts.team.gather(values))], dtype=torch.float64
            )
        else:
            everywhere = torch.cat(own)
        estimate = everywhere.to(widest(everywhere.device)).mean().clamp(min=0)
        return Shared(estimate.to(device, matched.dtype), ref_sums)

    def __call__(
        self, model: torch.nn.Module, examples: Sequence[TokenisedLabel], shared: Shared
    ) -> tuple[LossOutput, int]:
        reference = self.parts.reference
        assert reference is not None
        groups, batch, position, desirable = self._laid_out(examples)
        if shared.ref_sums:
            ref_sums = torch.stack([shared.ref_sums[id(e)] for e in examples])
        else:
            ref_sums = reference.sums(groups, batch)[position]
        sums = segment_sums(batch, model(batch))[position]
        inputs = LabelInputs(
            completion=sums,
            ref_completion=ref_sums,
            completion_len=batch.completion_lengths[position],
            desirable=desirable,
            kl=shared.kl,
        )
        return self.parts.method.loss(inputs, self.parts.options), batch.num_tokens

    def _mismatches(self, examples: Sequence[TokenisedLabel]) -> dict[int, Sequence[int]]:
        """For each example the nearest completion before it, in a circle, of another prompt.

        It is cut to what `max_length` leaves after the example's prompt, as its own was, and one
        that keeps no trained token that way is passed over while there are others.
        """
        mismatches: dict[int, Sequence[int]] = {}
        for i, example in enumerate(examples):
            before = (examples[(i - back) % len(examples)] for back in range(1, len(examples)))
            limit = self.parts.max_length
            room = None if limit is None else limit - len(example.prompt)
            nearest = (e for e in chain(before, self.spare) if e.prompt != example.prompt)
            cut = (other.completion[:room] for other in nearest)
            first = next(cut, None)
            assert first is not None, "data of one prompt is refused before training"
            mismatches[id(example)] = next(filter(num_trained, chain([first], cut)), first)
        return mismatches

    @torch.no_grad()
    def _divergence(
        self,
        model: torch.nn.Module,
        examples: Sequence[TokenisedLabel],
        mismatches: Sequence[Sequence[int]],
    ) -> tuple[Tensor, Tensor]:
        """`[examples]` each: reference log-probs of the completions, and log policy / reference
        of the mismatched ones.

        The reference scores both in one pass, further segments on the same prompt. The policy
        scores the mismatched ones alone: they carry no gradient, and would cost one.
        """
        assert self.parts.reference is not None
        scorer, count = self.parts.scorer, len(examples)
        wrong: list[Item] = [(e.prompt, m) for e, m in zip(examples, mismatches, strict=True)]
        groups, order = share_prompts([(e.prompt, e.completion) for e in examples] + wrong)
        batch = scorer.batch(groups)
        ref_sums = self.parts.reference.sums(groups, batch)
        ref_sums = ref_sums[_on(order, ref_sums.device)]
        groups, order = share_prompts(wrong)
        batch = scorer.batch(groups)
        sums = segment_sums(batch, model(batch))[_on(order, ref_sums.device)]
        return ref_sums[:count], sums - ref_sums[count:]

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[TokenisedLabel], *, batch_size: int, progress: Progress
    ) -> Evaluation:
        scorer, team = self.parts.scorer, self.parts.team
        with scorer.evaluating():
            tokens = TokenMeans()
            mismatches = self._mismatches(examples) if self.needs.mismatches else {}
            parts = []
            for some, counts in batches(examples, batch_size, progress, team):
                scored, *columns = self._score(some)
                if mismatches:
                    others = [mismatches[id(e)] for e in some]
                    columns.append(self._divergence(scorer, some, others)[1])
                if counts:
                    tokens.add(scored)
                    parts.append([column.cpu() for column in columns])
        ordered = by_length(examples)
        completion, reference, *estimates = map(torch.cat, zip(*team.together(parts), strict=True))
        inputs = LabelInputs(
            completion=completion,
            ref_completion=reference,
            completion_len=torch.tensor([num_trained(e.completion) for e in ordered]).to(
                completion.device
            ),
            desirable=_desirable(ordered, completion.device),
            kl=estimates[0].mean().clamp(min=0) if estimates else completion.new_zeros(()),
        )
        output = self.parts.method.loss(inputs, self.parts.options)
        chosen, rejected = (mean(output.metrics[f"reward/{s}"]) for s in ("chosen", "rejected"))
        # A reward is `beta` times the log-ratio: the ranking does not depend on beta.
        rewards = inputs.completion - inputs.ref_completion
        return Evaluation(
            num_examples=len(ordered),
            loss=mean(output.per_example),
            accuracy=ranked_right(ordered, rewards),
            margin=chosen - rejected,
            reward_chosen=chosen,
            reward_rejected=rejected,
            logprob_accuracy=ranked_right(ordered, inputs.completion),
            logprob_chosen=mean(output.metrics["logprob/chosen"]),
            logprob_rejected=mean(output.metrics["logprob/rejected"]),
            **tokens.means(team),
        )

    def _score(self, examples: Sequence[TokenisedLabel]) -> tuple[Scored, Tensor, Tensor]:
        groups, batch, position, _ = self._lay_out(examples)
        scored = score_both(self.parts.scorer, self.parts.reference, groups, batch)
        assert scored.ref_sums is not None
        return scored, segment_sums(batch, scored.logprobs)[position], scored.ref_sums[position]


def blocks_of(examples: Sequence[TokenisedLabel]) -> list[list[int]]:
    """Indices of examples that a shuffle keeps together: twos of one prompt, if they can be
    a good and a bad one. More would make steps of few prompts."""
    waiting: dict[tuple[int, ...], list[int]] = {}
    blocks: list[list[int]] = []
    for i, example in enumerate(examples):
        others = waiting.setdefault(tuple(example.prompt), [])
        partner = next((j for j in others if examples[j].desirable != example.desirable), None)
        if partner is None:
            others.append(i)
        else:
            others.remove(partner)
            blocks.append([partner, i])
    blocks += [[i] for others in waiting.values() for i in others]
    return sorted(blocks)


def ranked_right(examples: Sequence[TokenisedLabel], rewards: Tensor) -> float:
    """Share of (desirable, undesirable) completions of one prompt that `rewards` ranks right.

    Where no prompt has both kinds, all are compared with all (the area under the ROC curve).
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, example in enumerate(examples):
        by_prompt.setdefault(tuple(example.prompt), []).append(i)
    outcomes = [
        outcome
        for members in by_prompt.values()
        for outcome in _outcomes([examples[i] for i in members], rewards[members])
    ]
    return mean(torch.cat(outcomes or _outcomes(examples, rewards) or [torch.tensor([0.5])]))


def _outcomes(examples: Sequence[TokenisedLabel], rewards: Tensor) -> list[Tensor]:
    good = _desirable(examples, rewards.device)
    difference = rewards[good].unsqueeze(1) - rewards[~good].unsqueeze(0)
    return [accuracy(difference).flatten()] if difference.numel() else []


def _desirable(examples: Sequence[TokenisedLabel], device: torch.device) -> Tensor:
    return torch.tensor([e.desirable for e in examples], device=device)


def _on(numbers: list[int], device: torch.device) -> Tensor:
    return to_device([torch.tensor(numbers)], device)[0]


def _two_prompts(examples: Sequence[TokenisedLabel]) -> list[TokenisedLabel]:
    """An example each of the first two prompts, if there are two."""
    first = examples[:1]
    return [*first, *([e for e in examples if e.prompt != examples[0].prompt][:1] if first else [])]
