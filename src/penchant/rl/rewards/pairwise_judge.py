"""A judge that compares the answers to one prompt with one another, as a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from penchant.core.asking import Usage
from penchant.core.errors import ConfigError
from penchant.core.judge import JudgeSettings, read_rubric
from penchant.core.pairwise import PLACES, RUBRIC, Verdict, judge_both_orders, try_judge
from penchant.data.rows.readable import as_text
from penchant.rl.rewards.samples import MissingScoresError, Sample

# What a verdict is worth to the first of two answers; the second has the rest.
WORTH = {"a": 1.0, "tie": 0.5, "b": 0.0}


class PairwiseJudgeReward:
    """The share of the other answers to its prompt that an answer wins against; a tie is half.

    Every two answers are shown in both orders, and one that is not preferred in both is a tie with
    the other: `n (n - 1)` requests for `n` answers that differ.

    Args:
        settings: of the judge.
        name: by which metrics and messages call it.

    Raises:
        ConfigError: the endpoint cannot be reached, or the rubric lacks a place for an answer.

    References:
        Guo et al. 2024 (https://arxiv.org/abs/2402.04792), section 3: a model that is shown both
        answers, in both orders, says which is better.
    """

    compares = True

    def __init__(self, settings: JudgeSettings, name: str = "judge") -> None:
        self.name = name
        self._rubric = RUBRIC if settings.rubric is None else read_rubric(settings.rubric, PLACES)
        self.endpoint = settings.endpoint()

    @property
    def usage(self) -> Usage:
        """What the judge was asked so far."""
        return self.endpoint.usage

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One share a sample, in [0, 1]; what was compared before is not compared again.

        Args:
            samples: all answers to each of some prompts.

        Raises:
            MissingScoresError: an answer was compared with none: each of its comparisons came to
                no verdict, or it is the only one to its prompt.
        """
        pairs = [pair for group in _groups(samples) for pair in combinations(group, 2)]
        worth: list[list[float]] = [[] for _ in samples]
        reasons = dict.fromkeys(range(len(samples)), "it is the only answer to its prompt")
        for (a, b), verdict in zip(pairs, self._verdicts(samples, pairs), strict=True):
            if verdict.side is None:
                reasons[a] = reasons[b] = verdict.reason
                continue
            worth[a].append(WORTH[verdict.side])
            worth[b].append(1.0 - WORTH[verdict.side])
        shares = [mean(values) if values else math.nan for values in worth]
        if missing := {i: reasons[i] for i, values in enumerate(worth) if not values}:
            raise MissingScoresError(shares, missing)
        return shares

    def try_once(self) -> None:
        """Have two answers of no matter compared, before those that matter are made.

        Raises:
            ConfigError: the judge refuses every request, or states no verdict.
        """
        try_judge(self.endpoint, self._rubric)

    def _verdicts(
        self, samples: Sequence[Sample], pairs: Sequence[tuple[int, int]]
    ) -> list[Verdict]:
        """On each two answers; the judge is not asked about two that are the same."""
        differ = [(a, b) for a, b in pairs if samples[a].completion != samples[b].completion]
        shown = [
            (as_text(samples[a].prompt), samples[a].completion, samples[b].completion)
            for a, b in differ
        ]
        judged = dict(
            zip(differ, judge_both_orders(self.endpoint, self._rubric, shown), strict=True)
        )
        return [judged.get(pair, Verdict("tie")) for pair in pairs]


def _groups(samples: Sequence[Sample]) -> list[list[int]]:
    """The indices of the answers to each prompt."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault((sample.where, tuple(sample.prompt_ids)), []).append(i)
    return list(groups.values())


def require_several(rewards: Sequence[object], num_answers: int) -> None:
    """Refuse a reward that compares answers where each prompt has one.

    Raises:
        ConfigError: with what serves instead.
    """
    comparing = [one for one in rewards if getattr(one, "compares", False)]
    if comparing and num_answers < 2:
        raise ConfigError(
            f"reward {getattr(comparing[0], 'name', comparing[0])} compares the answers to one "
            "prompt with one another, and here each prompt has one; train with a method that "
            "samples several (online_dpo, rloo, grpo), or drop pairwise, to have each answer "
            "scored by itself; evaluate takes such a judge as --judge"
        )
