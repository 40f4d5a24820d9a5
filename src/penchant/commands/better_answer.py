"""Which of two answers to a prompt is better: by their rewards, or by a judge that reads both."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.commands.opened import Opened, trained_on_plain, weights_dtype
from penchant.commands.yardstick import ahead
from penchant.core.errors import RewardError
from penchant.core.judge import read_settings
from penchant.core.machine import resolve_precision
from penchant.core.pairwise import judge_both_orders, rubric_of, try_judge
from penchant.core.screen import track
from penchant.data.rows.readable import as_text
from penchant.rl.rewards.make import (
    ModelContext,
    RewardOptions,
    Rewards,
    find_rewards,
    make_rewards,
    require_judging,
)
from penchant.rl.rewards.samples import Sample
from penchant.rl.rewards.tokens import encode_alike

if TYPE_CHECKING:
    from penchant.data.prompts import Prompt

logger = logging.getLogger("penchant")

# Answers that a reward scores at once, between two steps of the progress bar.
SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Judged:
    """What was found prompt by prompt: `[prompts]` each.

    Attributes:
        wins: 1, 0.5 or 0; NaN where there is no verdict.
        rewards, other_rewards: empty with a judge.
        contradicted: verdicts that followed the order; half_preferred: in one order alone.
        usage: of a judge.
    """

    wins: list[float]
    rewards: list[float]
    other_rewards: list[float]
    contradicted: int = 0
    half_preferred: int = 0
    usage: str = ""


class ByReward:
    """Judges two answers by their rewards.

    Args:
        reward: what training would name, one or several.
        batch_size: answers that a reward model scores side by side.
        trust_remote_code: run code that comes with a reward model.

    Raises:
        UserError: what is named is not there, or is no reward; no weight is loaded.
    """

    def __init__(self, reward: Any, batch_size: int, trust_remote_code: bool) -> None:
        self.batch_size = batch_size
        several = list(reward) if isinstance(reward, list | tuple) else [reward]
        self.name = ", ".join(getattr(one, "__name__", str(one)) for one in several)
        named = {"reward": tuple(map(str, several)), "reward_normalization": "none"}
        self.options = RewardOptions.model_validate({**named, "on_reward_error": "drop"})
        self.found = find_rewards(several, trust_remote_code=trust_remote_code)

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuse what could judge no answer to the prompts, before any is drawn.

        Raises:
            UserError: a function needs a column that a prompt lacks, or a judge does not judge.
        """
        require_judging(self.found, prompts)

    def __call__(
        self, own: list[Sample], theirs: list[Sample], opened: Opened, other: Opened
    ) -> Judged:
        """Which of each two answers has the higher reward."""
        rewards = self._made(opened)
        first = _scores(rewards, own)
        same_template = opened.tokenizer.chat_template == other.tokenizer.chat_template
        if not (same_template and encode_alike(opened.tokenizer, other.tokenizer)):
            del rewards  # a reward model reads token ids of one tokenizer, with one template
            rewards = self._made(other)
        second = _scores(rewards, theirs)
        wins = [ahead(now, then) for now, then in zip(first, second, strict=True)]
        usage = "; ".join(f"{name}: {used}" for name, used in rewards.usage().items())
        return Judged(wins, first, second, usage=usage)

    def _made(self, opened: Opened) -> Rewards:
        precision = resolve_precision(opened.config.precision, opened.accelerator.device)
        context = ModelContext(
            opened.tokenizer,
            device=opened.accelerator.device,
            dtype=weights_dtype(opened.config, precision),
            precision=precision,
            autocast=opened.accelerator.autocast,
            batch_size=self.batch_size,
            trust_remote_code=opened.config.trust_remote_code,
            reads_plain=trained_on_plain,
        )
        rewards = make_rewards(self.found, self.options, context)
        for finding in rewards.findings:
            logger.info("%s", finding)
        return rewards


def _scores(rewards: Rewards, samples: Sequence[Sample]) -> list[float]:
    """The sum of the rewards of each sample; NaN where one of them gave none.

    Raises:
        RewardError: no sample of a whole batch has a score; the few last ones may have none.
    """
    scores: list[float] = []
    for start in track(range(0, len(samples), SCORED_AT_ONCE), "scoring"):
        some = samples[start : start + SCORED_AT_ONCE]
        try:
            scores += rewards.score(some).raw
        except RewardError as error:  # no sample of these has a score
            if not scores or len(some) == SCORED_AT_ONCE:
                raise
            logger.warning("%s", error)
            scores += [math.nan] * len(some)
    return scores


class ByJudge:
    """Has a judge compare two answers, in both orders.

    Args:
        place: an address or a YAML file.

    Raises:
        ConfigError: the file or its rubric cannot be read, or nothing answers there.
    """

    def __init__(self, place: str) -> None:
        settings = read_settings(place)
        self.rubric = rubric_of(settings)
        self.endpoint = settings.endpoint()
        self.name = f"judge {self.endpoint.model}"

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuse a judge that judges nothing, before any answer is drawn.

        Raises:
            ConfigError: it refuses every request, or gives no verdict.
        """
        try_judge(self.endpoint, self.rubric)

    def __call__(
        self, own: list[Sample], theirs: list[Sample], opened: Opened, other: Opened
    ) -> Judged:
        """Which of each two answers the judge prefers; equal ones are not asked about."""
        asked = [
            (as_text(one.prompt), one.completion, other.completion)
            for one, other in zip(own, theirs, strict=True)
        ]
        found = judge_both_orders(self.endpoint, self.rubric, asked)
        self.endpoint.close()
        for reason in {one.reason for one in found if one.side is None}:
            logger.warning("no verdict: %s", reason)
        return Judged(
            [one.worth for one in found],
            [],
            [],
            contradicted=sum(one.contradicted for one in found),
            half_preferred=sum(one.half_preferred for one in found),
            usage=str(self.endpoint.usage),
        )
