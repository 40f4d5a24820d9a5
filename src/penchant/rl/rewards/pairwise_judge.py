"""A judge that compares the answers to one prompt with one another, as a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from penchant.core.asking import Usage
from penchant.core.judge import JudgeSettings
from penchant.core.pairwise import Verdict, judge_both_orders, rubric_of, try_judge
from penchant.data.rows.readable import as_text
from penchant.rl.rewards.samples import MissingScoresError, Sample


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

    def __init__(self, settings: JudgeSettings, name: str = "judge") -> None:
        self.name = name
        self._rubric = rubric_of(settings)
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
                no verdict, or it is the only one to its prompt. One without a verdict beside
                others is a tie.
        """
        pairs = [pair for group in _groups(samples) for pair in combinations(group, 2)]
        worth: list[list[float]] = [[] for _ in samples]
        reasons = dict.fromkeys(range(len(samples)), "it is the only answer to its prompt")
        for (a, b), verdict in zip(pairs, self._verdicts(samples, pairs), strict=True):
            worth[a].append(verdict.worth)
            worth[b].append(1.0 - verdict.worth)
            if verdict.side is None:
                reasons[a] = reasons[b] = verdict.reason
        missing = {i: reasons[i] for i, all_of in enumerate(worth) if all(map(math.isnan, all_of))}
        shares = [
            math.nan if i in missing else mean(0.5 if math.isnan(one) else one for one in all_of)
            for i, all_of in enumerate(worth)
        ]
        if missing:
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
        """On each two answers; how many followed the order is counted."""
        shown = [
            (as_text(samples[a].prompt), samples[a].completion, samples[b].completion)
            for a, b in pairs
        ]
        verdicts = judge_both_orders(self.endpoint, self._rubric, shown)
        self.usage.compared += len(verdicts)
        self.usage.contradicted += sum(one.contradicted for one in verdicts)
        return verdicts


def _groups(samples: Sequence[Sample]) -> list[list[int]]:
    """The indices of the answers to each prompt; one that was asked twice is two."""
    groups: dict[tuple[int, str], list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault((sample.number, sample.where), []).append(i)
    return list(groups.values())


def compares(reward: object) -> bool:
    """Whether a reward compares the answers to one prompt with one another."""
    return isinstance(reward, PairwiseJudgeReward)
