"""`penchant.win_rate`: a policy's answers against those of its start or of another model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from penchant.commands.better_answer import ByJudge, ByReward, Judged
from penchant.commands.opened import open_model
from penchant.commands.two_answers import answer_both
from penchant.commands.yardstick import YARDSTICKS
from penchant.core.errors import ConfigError
from penchant.core.length_control import LengthControlled, length_controlled
from penchant.core.resampling import Difference, Interval, difference, interval, share
from penchant.core.screen import setup_logging
from penchant.data.opening import Sources
from penchant.data.prompts import read_prompts
from penchant.data.records import canonical
from penchant.data.rows.messages import plain
from penchant.guards.monitors.monitor import SEED
from penchant.rl.rewards.samples import Sample
from penchant.rl.sampling.base import Draw, Sampling, require_sampling

logger = logging.getLogger("penchant")

START = "its start"
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
    drawn: Callable[[list[dict[str, Any]]], None] | None = None,
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
        drawn: is given both answers to each prompt before they are judged: that may fail.
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
    opened = open_model(model, batch_size, keys)
    trusted = opened.config.trust_remote_code
    by: ByReward | ByJudge = (
        ByReward(reward, batch_size, trusted) if judge is None else ByJudge(judge)
    )
    other = None if against is None else open_model(against, batch_size, keys)
    data = read_prompts(Sources.of(prompts, split, columns or {}), strict=strict)
    logger.info("%s", data.summary())
    by.require(data.records)
    draw = Draw(Sampling(max_new_tokens, temperature, top_p=top_p), SEED + seed)
    own, theirs = answer_both(opened, other, data.records, draw, batch_size)
    if drawn is not None:
        drawn(_answers(own, theirs))
    judged = by(own, theirs, opened, other or opened)
    name = str(model), START if against is None else str(against)
    return _concluded(name, by.name, own, theirs, judged)


def _answers(own: Sequence[Sample], theirs: Sequence[Sample]) -> list[dict[str, Any]]:
    return [
        {"prompt": plain(one.prompt), "answer": one.completion, "other": other.completion}
        for one, other in zip(own, theirs, strict=True)
    ]


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
        {**both, "win": win} for both, win in zip(_answers(own, theirs), judged.wins, strict=True)
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
