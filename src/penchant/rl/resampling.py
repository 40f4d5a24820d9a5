"""Dynamic sampling: groups that teach nothing are replaced by answers to further prompts.

Of a prompt that every answer solves, or none, nothing can be learned by comparing the answers.
Prompts are drawn until enough groups teach (DAPO, Yu et al. 2025,
https://arxiv.org/abs/2503.14476, 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from penchant.methods.experience import Experience
from penchant.rl.metrics import batch_metrics
from penchant.rl.rewards.judging import Scores
from penchant.rl.rollout import Judged

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.experience import Advantages


class Refilled(NamedTuple):
    """A batch with groups that teach, as far as they could be found."""

    judged: Judged
    """Everything that was sampled for it."""
    chosen: Judged
    """The groups to train on, at most as many as were asked for; the metrics are of everything."""
    num_batches: int
    """How often prompts were answered."""


def refill(
    collect: Callable[[int, int], Judged],
    estimate: Callable[[Experience], Advantages],
    num_groups: int,
    max_batches: int,
) -> Refilled:
    """Sample until `num_groups` groups teach, or prompts were answered `max_batches` times.

    A group teaches if the method keeps one of its answers. All processes draw the same prompts,
    because all know the scores of all answers.

    Args:
        collect: (how many of the next prompts, number of the first) to their judged answers.
        estimate: what the method makes of an experience.
        num_groups: prompts of a batch.
        max_batches: at least one.
    """
    rounds: list[Judged] = []
    teaching: list[int] = []
    drawn, flat = 0, 0.0
    while len(rounds) < max_batches and len(teaching) < num_groups:
        missing = num_groups - len(teaching)
        # As many as are expected to fill the batch, by the share that taught so far.
        expected = math.ceil(missing * drawn / len(teaching)) if teaching else num_groups
        count = min(num_groups, expected)
        judged = collect(count, drawn)
        drawn += count
        rounds.append(judged)
        if judged.answers:
            estimated, group = estimate(judged.experience), judged.experience.group
            kept = estimated.kept
            flat += estimated.metrics["reward/zero_variance"] * len(group.unique())
            teaching += sorted(set((group if kept is None else group[kept]).tolist()))
    every = _joined(rounds)
    teaching = teaching[:num_groups]
    groups = len(every.experience.group.unique())
    metrics = {
        **every.metrics,
        "reward/zero_variance": flat / groups if groups else 1.0,
        "resampling/batches": float(len(rounds)),
        "resampling/thrown_away": 1 - len(teaching) / drawn,
    }
    every = replace(every, metrics=metrics)
    return Refilled(every, _only(every, set(teaching)), len(rounds))


def _joined(rounds: Sequence[Judged]) -> Judged:
    """One batch of several, whose answers have numbers of their own."""
    if len(rounds) == 1:
        return rounds[0]
    answers = [answer for judged in rounds for answer in judged.answers]
    scores = _joined_scores([judged.scores for judged in rounds])
    experience = _joined_experience([judged.experience for judged in rounds if judged.answers])
    seconds = {
        name: sum(judged.metrics[name] for judged in rounds)
        for name in rounds[0].metrics
        if name.startswith("seconds/")
    }
    return Judged(
        answers,
        [text for judged in rounds for text in judged.texts],
        scores,
        experience or rounds[0].experience,
        {**batch_metrics(answers, scores, experience or rounds[0].experience), **seconds},
    )


def _joined_scores(parts: Sequence[Scores]) -> Scores:
    apart = [part.disagreement for part in parts if part.disagreement is not None]
    return Scores(
        rewards=[value for part in parts for value in part.rewards],
        raw=[value for part in parts for value in part.raw],
        given=[
            [value for values in column for value in values]
            for column in zip(*(part.given for part in parts), strict=True)
        ],
        penalties=[value for part in parts for value in part.penalties],
        by_name={
            name: [value for part in parts for value in part.by_name[name]]
            for name in parts[0].by_name
        },
        dropped=sum(part.dropped for part in parts),
        disagreement=[value for values in apart for value in values] or None,
    )


def _joined_experience(parts: Sequence[Experience]) -> Experience | None:
    """None of none."""
    if not parts:
        return None
    columns = {
        field.name: [getattr(part, field.name) for part in parts] for field in fields(Experience)
    }
    return Experience(
        **{
            name: torch.cat(values)
            for name, values in columns.items()
            if all(value is not None for value in values)
        }
    )


def _only(judged: Judged, groups: set[int]) -> Judged:
    """The answers of some groups; scores and metrics are of all that was sampled."""
    experience = judged.experience
    kept = torch.tensor([number in groups for number in experience.group.tolist()])
    places = kept.nonzero().flatten().tolist()
    return replace(
        judged,
        answers=[judged.answers[i] for i in places],
        texts=[judged.texts[i] for i in places],
        experience=_some(experience, kept) if places else experience,
    )


def _some(experience: Experience, kept: Tensor) -> Experience:
    """Of the answers that `kept` `[B]` names."""
    of_tokens = kept[experience.index]  # [N]
    given = {field.name: getattr(experience, field.name) for field in fields(Experience)}
    by_answer = ("lengths", "group", "scores", "ended", "by_reward", "penalties")
    return Experience(
        **{
            name: value[kept if name in by_answer else of_tokens]
            for name, value in given.items()
            if value is not None
        }
    )
