"""`penchant.win_rate`: a policy's answers against those of its start or of another model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from penchant.commands.opened import Opened, open_model, trained_on_plain, weights_dtype
from penchant.commands.two_answers import answer_both
from penchant.commands.yardstick import YARDSTICKS, ahead
from penchant.core.errors import ConfigError, RewardError
from penchant.core.judge import read_rubric, read_settings
from penchant.core.length_control import LengthControlled, length_controlled
from penchant.core.machine import resolve_precision
from penchant.core.pairwise import PLACES, RUBRIC, Verdict, judge_both_orders
from penchant.core.resampling import Difference, Interval, difference, interval, share
from penchant.core.screen import setup_logging, track
from penchant.data.opening import Sources
from penchant.data.prompts import read_prompts
from penchant.data.records import canonical
from penchant.data.rows.messages import plain
from penchant.data.rows.readable import as_text
from penchant.guards.monitors.monitor import SEED
from penchant.rl.rewards.make import (
    ModelContext,
    RewardOptions,
    Rewards,
    find_rewards,
    make_rewards,
)
from penchant.rl.rewards.samples import Sample
from penchant.rl.rewards.tokens import encode_alike
from penchant.rl.sampling.base import Draw, Sampling, require_sampling

logger = logging.getLogger("penchant")

START = "its start"
# Answers that a reward scores at once, between two steps of the progress bar.
SCORED_AT_ONCE = 64
# Half of all prompts: neither model is better.
EVEN = 0.5


@dataclass(frozen=True)
class WinRate:
    """How often a model's answers are better than another's.

    Attributes:
        model, against: what was compared.
        judged_by: the reward or the judge.
        win_rate: share of prompts whose answer is better; equal ones count half.
        lead: the win rate less one half, with the test of whether that is chance.
        equal_length: the same at equal lengths, in characters; None where lengths do not differ.
        wins, ties, losses: prompts.
        unjudged: prompts without a verdict, which are left out.
        contradicted: of the ties, those where a judge's verdict followed the order of the answers.
        half_preferred: of the ties, those where a judge preferred an answer in one order alone.
        reward, other_reward: means of the rewards; gain: of their difference, prompt by prompt.
            None with a judge.
        num_tokens, other_num_tokens: mean length of the answers, end tokens included.
        ended, other_ended: share of answers that ended by themselves.
        usage: what the judge was asked, and what it cost.
        answers: each prompt with both answers and the verdict.
    """

    model: str
    against: str
    judged_by: str
    win_rate: Interval
    lead: Difference
    equal_length: LengthControlled | None
    wins: int
    ties: int
    losses: int
    unjudged: int
    contradicted: int
    half_preferred: int
    reward: Interval | None
    other_reward: Interval | None
    gain: Difference | None
    num_tokens: float
    other_num_tokens: float
    ended: float
    other_ended: float
    usage: str
    answers: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """What may be concluded, in words."""
        if self.lead.by_chance:
            return f"{self.model} and {self.against} cannot be told apart"
        return f"{self.model} is {'better' if self.lead.mean > 0 else 'worse'} than {self.against}"

    @property
    def meaning(self) -> str:
        """What the win rate is, in words."""
        if self.reward is None:
            return "share of prompts whose answer the judge prefers to the other's in both orders"
        return YARDSTICKS["win_rate"].replace("the start's answer", f"that of {self.against}")

    def figures(self) -> dict[str, Any]:
        """For JSON: everything but the answers."""
        found = {name: value for name, value in asdict(self).items() if name != "answers"}
        return {"yardstick": "win_rate", "meaning": self.meaning, **found, "verdict": self.verdict}


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


def win_rate(
    *,
    model: str | Path,
    prompts: Any,
    reward: str | Sequence[Any] | None = None,
    judge: str | None = None,
    against: str | Path | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    split: str = "train",
    columns: Any = None,
    strict: bool = False,
    **keys: Any,
) -> WinRate:
    """How often a model's answers are better than those of its start, or of another model.

    Both answer the same prompts under the same random numbers, as `penchant compare` and the
    monitors have it.

    Args:
        model: a run directory, a folder, a hub id, a .gguf file, or an adapter.
        prompts: anything that training on prompts reads; pairs and labels give theirs.
        reward: what scores answers, as training names it; several are added up.
        judge: an address or a YAML file; it compares the two answers in both orders.
        against: the other model; default: what the run or adapter started from.
        max_new_tokens, temperature, top_p: of the answers; temperature 0 draws nothing.
        seed: of the draws; 0: those of `penchant compare`.
        batch_size: answers that are drawn or scored side by side.
        split, columns, strict: as for reading prompts.
        keys: `max_length`, `max_prompt_length`, `chat_template`, `chat_template_kwargs`,
            `precision`, `dtype`, `quantization`, `trust_remote_code`, of both models; default:
            each run's own.

    Raises:
        UserError: neither or both of reward and judge, a model that cannot answer, prompts that
            cannot be read, a judge that does not answer.
    """
    setup_logging()
    require_sampling(max_new_tokens, temperature, top_p)
    if (reward is None) == (judge is None):
        raise ConfigError("what judges the answers is either a reward or a judge; give one of them")
    by: _Judge | _Reward = _Reward(reward, batch_size) if judge is None else _Judge(judge)
    opened = open_model(model, batch_size, keys)
    other = None if against is None else open_model(against, batch_size, keys)
    data = read_prompts(Sources.of(prompts, split, columns or {}), strict=strict)
    logger.info("%s", data.summary())
    draw = Draw(Sampling(max_new_tokens, temperature, top_p=top_p), SEED + seed)
    own, theirs = answer_both(opened, other, data.records, draw, batch_size)
    judged = by(own, theirs, opened, other or opened)
    name = str(model), START if against is None else str(against)
    return _concluded(name, by.name, own, theirs, judged)


class _Reward:
    """Judges two answers by their rewards.

    Args:
        reward: what training would name, one or several.
        batch_size: answers that a reward model scores side by side.
    """

    def __init__(self, reward: Any, batch_size: int) -> None:
        self.batch_size = batch_size
        several = list(reward) if isinstance(reward, list | tuple) else [reward]
        self.name = ", ".join(getattr(one, "__name__", str(one)) for one in several)
        named = {"reward": tuple(map(str, several)), "reward_normalization": "none"}
        self.options = RewardOptions.model_validate({**named, "on_reward_error": "drop"})
        self.found = find_rewards(several)  # what is not there ends here, before a model is loaded

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
    rewards.check(set.intersection(*(set(sample.fields) for sample in samples)))
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


class _Judge:
    """Has a judge compare two answers, in both orders.

    Args:
        place: an address or a YAML file.
    """

    def __init__(self, place: str) -> None:
        settings = read_settings(place)
        self.rubric = RUBRIC if settings.rubric is None else read_rubric(settings.rubric, PLACES)
        self.endpoint = settings.endpoint()
        self.name = f"judge {self.endpoint.model}"

    def __call__(
        self, own: list[Sample], theirs: list[Sample], opened: Opened, other: Opened
    ) -> Judged:
        """Which of each two answers the judge prefers; equal ones are not asked about."""
        asked = [
            (as_text(one.prompt), one.completion, other.completion)
            for one, other in zip(own, theirs, strict=True)
        ]
        differ = [row for row in asked if row[1] != row[2]]
        verdicts = iter(judge_both_orders(self.endpoint, self.rubric, differ))
        found = [next(verdicts) if row[1] != row[2] else Verdict("tie") for row in asked]
        self.endpoint.close()
        wins = {"a": 1.0, "tie": 0.5, "b": 0.0, None: math.nan}
        for reason in {one.reason for one in found if one.side is None}:
            logger.warning("no verdict: %s", reason)
        return Judged(
            [wins[one.side] for one in found],
            [],
            [],
            contradicted=sum(one.contradicted for one in found),
            half_preferred=sum(one.half_preferred for one in found),
            usage=str(self.endpoint.usage),
        )


def _concluded(
    names: tuple[str, str], by: str, own: list[Sample], theirs: list[Sample], judged: Judged
) -> WinRate:
    prompts = [canonical(sample.prompt) for sample in own]
    rate = share(judged.wins, prompts)
    lead = difference([win - EVEN for win in judged.wins], prompts)
    if rate is None or lead is None:
        raise ConfigError(f"{by} gave no verdict on any of {len(own)} prompts")
    longer = [
        float(len(a.completion) - len(b.completion)) for a, b in zip(own, theirs, strict=True)
    ]
    gains = [a - b for a, b in zip(judged.rewards, judged.other_rewards, strict=True)]
    answers = [
        {
            "prompt": plain(one.prompt),
            "answer": one.completion,
            "other": other.completion,
            "win": win,
        }
        for one, other, win in zip(own, theirs, judged.wins, strict=True)
    ]
    return WinRate(
        *names,
        by,
        rate,
        lead,
        length_controlled(judged.wins, longer, prompts),
        wins=judged.wins.count(1.0),
        ties=judged.wins.count(EVEN),
        losses=judged.wins.count(0.0),
        unjudged=sum(map(math.isnan, judged.wins)),
        contradicted=judged.contradicted,
        half_preferred=judged.half_preferred,
        reward=interval(judged.rewards, prompts) if judged.rewards else None,
        other_reward=interval(judged.other_rewards, prompts) if judged.rewards else None,
        gain=difference(gains, prompts) if gains else None,
        num_tokens=mean(len(sample.completion_ids) for sample in own),
        other_num_tokens=mean(len(sample.completion_ids) for sample in theirs),
        ended=mean(sample.ended for sample in own),
        other_ended=mean(sample.ended for sample in theirs),
        usage=judged.usage,
        answers=answers,
    )
