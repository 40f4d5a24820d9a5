"""What the models say of sampled answers: log-probs, entropies, values, divergences."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.screen import track
from penchant.data.shared_prompts import share_prompts
from penchant.models.teacher import Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Group, TokenBatch
    from penchant.data.tokenised import TokenisedPrompt
    from penchant.models.policy import PolicyScorer
    from penchant.models.reference import Reference
    from penchant.rl.sampling.base import Completion


logger = logging.getLogger("penchant")

# By how much what a sampler tells may differ from a pass over its answers, to stand for it.
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 1e-5, 1e-4


@dataclass(frozen=True)
class Answer:
    """One sampled answer before it is judged."""

    prompt: TokenisedPrompt
    number: int
    """Of the prompt, within the batch."""
    completion: Completion


def drawn_columns(answers: Sequence[Answer]) -> list[dict[str, Tensor]] | None:
    """What the sampler told of each answer, `[T]` by name; None where it gave no log-probs."""
    completions = [answer.completion for answer in answers]
    if any(len(one.logprobs) != len(one.ids) for one in completions):
        return None
    return [
        {
            name: torch.tensor(column, dtype=torch.float32)
            for name, column in {
                "logprobs": one.logprobs, "entropy": one.entropies, "values": one.values
            }.items()
            if len(column)
        }
        for one in completions
    ]  # fmt: skip


def agree(drawn: Sequence[dict[str, Tensor]], scored: Sequence[dict[str, Tensor]]) -> bool | None:
    """Whether a sampler has told what scoring finds, but for the rounding of single precision.

    None where that cannot be said yet: a value head that is not trained says 0 of anything.

    Args:
        drawn, scored: of the same answers, `[T]` by name; of the second there may be more names.
    """
    differences = torch.cat(
        [
            (column - found[name]).abs()
            for told, found in zip(drawn, scored, strict=True)
            for name, column in told.items()
        ]
    )
    mean, largest = float(differences.mean()), float(differences.max())
    same = mean <= MEAN_DIFFERENCE and largest <= LARGEST_DIFFERENCE  # also false for NaN
    if same and any("values" in found and not found["values"].any() for found in scored):
        return None
    logger.info(
        "what sampling tells of its answers %s a pass over them (it differs by %.1e on average, "
        "by %.1e at most)", "spares" if same else "does not stand for", mean, largest,
    )  # fmt: skip
    return same


@dataclass(frozen=True)
class Scoring:
    """Scores answers in passes without gradient.

    Attributes:
        policy: whose log-probs, entropies and values are told.
        reference, teacher: None where there is none.
        full_kl: also the exact divergence from the reference, of every token.
        batch_size: answers a pass.
        autocast: of the run's precision.
    """

    policy: PolicyScorer
    reference: Reference | None
    teacher: Teacher | None
    full_kl: bool
    batch_size: int
    autocast: Callable[[], Any]

    @torch.no_grad()
    def columns(
        self, answers: Sequence[Answer], drawn: Sequence[dict[str, Tensor]] | None = None
    ) -> list[dict[str, Tensor]]:
        """What the models say of each answer, `[T]` by name, on the CPU.

        Args:
            answers: at least one.
            drawn: what the sampler told of each, in place of the policy's pass.
        """
        if drawn is not None and self.reference is None:
            return list(drawn)
        columns: dict[int, dict[str, Tensor]] = {}
        ordered = _side_by_side(answers)
        with self.policy.evaluating(), self.autocast():
            for start in track(range(0, len(ordered), self.batch_size), "scoring"):
                some = ordered[start : start + self.batch_size]
                scored = self._scored([answers[i] for i in some], policy=drawn is None)
                columns.update(zip(some, scored, strict=True))
        found = [columns[i] for i in range(len(answers))]
        return found if drawn is None else [d | f for d, f in zip(drawn, found, strict=True)]

    def _scored(self, answers: Sequence[Answer], *, policy: bool) -> list[dict[str, Tensor]]:
        """Of each answer, `[T]` by name."""
        groups, order = share_prompts([(a.prompt.prompt, a.completion.ids) for a in answers])
        batch = self.policy.batch(groups)
        columns = self._of_policy(groups, batch) if policy else {}
        if self.reference is not None and "ref_logprobs" not in columns:
            with self.reference.active() as other:
                assert other is not None, "a cache cannot know what will be sampled"
                own = batch if other.plan.layout == batch.layout else other.batch(groups)
                columns["ref_logprobs"] = other(own)
        lengths = [len(completion) for group in groups for completion in group.completions]
        together = torch.stack([values.float() for values in columns.values()]).cpu()  # one wait
        pieces = {name: row.split(lengths) for name, row in zip(columns, together, strict=True)}
        return [{name: pieces[name][i] for name in pieces} for i in order]

    def _of_policy(self, groups: Sequence[Group], batch: TokenBatch) -> dict[str, Tensor]:
        """`[N]` by name."""
        policy, teacher, beside = self.policy, self.teacher, {}
        if self.full_kl:
            assert self.reference is not None
            teacher = Teacher(self.reference, beta=1.0)
        lesson = None if teacher is None else teacher.lesson(groups, batch, policy)
        out = policy(batch, policy=True, lesson=lesson)
        if self.full_kl and lesson is not None:
            beside = {"full_kl": out.teacher_kl, "ref_logprobs": lesson.logprobs(batch.targets)}
            if policy.is_filtered:  # the divergence is of whole distributions alone
                out, beside = policy(batch, policy=True), {"full_kl": out.teacher_kl}
        found = {"logprobs": out.logprobs, "entropy": out.entropy, "values": out.values, **beside}
        if self.teacher is not None:
            found["divergence"] = out.divergence
        return {name: column for name, column in found.items() if column is not None}


def _side_by_side(answers: Sequence[Answer]) -> list[int]:
    """Answers of one prompt together, so that it is laid out once; the longest first."""
    size: dict[int, int] = {}
    for answer in answers:
        size[answer.number] = max(
            size.get(answer.number, 0), len(answer.prompt.prompt) + len(answer.completion.ids)
        )
    return sorted(
        range(len(answers)), key=lambda i: (-size[answers[i].number], answers[i].number, i)
    )
