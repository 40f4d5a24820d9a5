"""One yardstick for models that several methods trained: the same pairs, the same questions."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.atomic import write_atomically
from penchant.core.errors import ConfigError, RewardError, UserError
from penchant.core.machine import out_of_memory_explained
from penchant.core.resampling import Difference, Interval, difference, interval
from penchant.core.screen import track
from penchant.core.strict_json import to_json
from penchant.data.batch import segment_sums
from penchant.data.records import Pair, prompt_key
from penchant.guards.monitors.answering import answering, distinct_prompts, held_out_rewards
from penchant.models.reference import Reference, weighted_sums
from penchant.objectives.held_out import batches
from penchant.training.inputs import make_tokeniser, tokenise
from penchant.training.kinds import Pairs
from penchant.training.references import switched_off

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group, TokenBatch
    from penchant.data.tokenise import TokenisedPair
    from penchant.guards.monitors.monitor import Check
    from penchant.models.scoring import Scorer
    from penchant.training.setup import Setup

logger = logging.getLogger("penchant")

FILE = "yardstick.json"
# What can decide, and what it is.
YARDSTICKS = {
    "win_rate": "share of prompts whose answer has a higher reward than the start's answer",
    "reward": "mean reward of its own answers",
    "implicit": "share of held-out pairs whose chosen answer gained more likelihood on the start",
    "raw": "share of held-out pairs whose chosen answer is likelier than the rejected one",
}
OF_ANSWERS = ("win_rate", "reward", "kl", "length")


@dataclass(frozen=True)
class Measured:
    """What one model was found to be; values by pair or by answer, with the prompts of each.

    Attributes:
        pair_prompts: `[pairs]`, keys of the held-out pairs' prompts.
        implicit, raw: `[pairs]`, 1 where the chosen answer is ahead, 0.5 where they are equal.
        answer_prompts: `[answers]`, keys of the prompts that were answered.
        kl: `[answers]`, of an answer from the start, in nats.
        length: `[answers]`, tokens.
        reward, win_rate: `[answers]`; empty without a reward.
        answers: the texts, with their prompts.
        asked: what decides which answers are compared, by `answers_asked`; empty where unknown.
    """

    pair_prompts: list[str]
    implicit: list[float]
    raw: list[float]
    answer_prompts: list[str]
    kl: list[float]
    length: list[float]
    reward: list[float]
    win_rate: list[float]
    answers: list[dict[str, Any]]
    asked: dict[str, int] = field(default_factory=dict)

    def values(self, name: str) -> tuple[list[float], list[str]]:
        """Values of a measure, and the prompt of each; none where it was not taken."""
        values: list[float] = getattr(self, name)
        prompts = self.answer_prompts if name in OF_ANSWERS else self.pair_prompts
        return values, prompts if values else []

    def interval(self, name: str) -> Interval | None:
        """The mean of a measure with its interval by prompt."""
        return interval(*self.values(name))

    def ahead(self, other: Measured, name: str) -> Difference | None:
        """How far this model is ahead of another, prompt by prompt.

        Both were asked the same, so that what makes a prompt hard for both cancels.
        """
        (own, prompts), (theirs, _) = self.values(name), other.values(name)
        return difference([a - b for a, b in zip(own, theirs, strict=True)], prompts)

    def save(self, folder: Path) -> None:
        """Write it into a run directory."""
        write_atomically(folder / FILE, to_json(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Measured | None:
        """What an earlier call has written; None where nothing is there."""
        file = folder / FILE
        if not file.exists():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        nan = float("nan")  # JSON has none: a reward that was not given is null
        for name in ("reward", "win_rate"):
            found[name] = [nan if value is None else value for value in found[name]]
        return cls(**found)


def answers_asked(config: RunConfig, num_answers: int) -> dict[str, int]:
    """What decides which answers are compared, beside the weights and the held-out pairs."""
    return {"num_answers": num_answers, "max_new_tokens": config.max_new_tokens}


class UnjudgedError(RewardError):
    """What judges answers failed on every answer of a model.

    Attributes:
        measured: all that needs no judge.
    """

    def __init__(self, reason: str, measured: Measured) -> None:
        super().__init__(reason)
        self.measured = measured


class StartReference:
    """The weights that training started from, put into the policy for a while.

    For models without an adapter that can be switched off, beside which there is no room for a
    second one.

    Args:
        policy: the model.
        trained: its parameters that training changes; weights: their values at the start.
    """

    kind = "start"

    def __init__(
        self, policy: Scorer, trained: dict[str, torch.nn.Parameter], weights: dict[str, Tensor]
    ) -> None:
        self.policy, self.trained, self.weights = policy, trained, weights

    @contextmanager
    def active(self) -> Iterator[None]:
        """No second model is held, which whole distributions could be compared with."""
        yield None

    @torch.no_grad()
    def sums(
        self, groups: Sequence[Group], batch: TokenBatch, weights: Tensor | None = None
    ) -> Tensor:
        now = {name: one.detach().to("cpu", copy=True) for name, one in self.trained.items()}
        _put(self.trained, self.weights)
        try:
            with self.policy.evaluating():
                return weighted_sums(batch, self.policy(batch), weights)
        finally:
            _put(self.trained, now)


@torch.no_grad()
def _put(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


class Yardstick:
    """Measures the policy of a setup, as its weights are, against what they were at the start.

    Args:
        config: of a run on the setup; `monitor_reward` judges answers.
        accelerator: of the run.
        setup: at its start: what is measured now is what later policies are held against.
        weights: of the parameters that are trained, at the start.
        pairs: held-out pairs.
        num_answers: prompts that are answered.
        start_rewards: what an earlier yardstick's answers of the start got, which stand where the
            judge now fails on all of them.

    Raises:
        RewardError: the judge fails on every answer of the start, and none are known.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        setup: Setup,
        weights: dict[str, Tensor],
        pairs: Sequence[Pair],
        num_answers: int,
        start_rewards: Sequence[float] = (),
    ) -> None:
        self.config, self.accelerator, self.setup = config, accelerator, setup
        tokeniser = make_tokeniser(config, setup.tokenizer, setup.end_ids)
        examples, _ = tokenise(Pairs(), pairs, tokeniser, "held-out pairs")
        self.examples: list[TokenisedPair] = examples
        records = {pair.where: pair for pair in pairs}
        self.pair_prompts = [prompt_key(records[one.where]) for one in examples]
        reference: Reference = switched_off(config, setup.scorer) or StartReference(
            setup.scorer, setup.trained(), weights
        )
        self.asked = answers_asked(config, num_answers)
        prompts = distinct_prompts(examples, records, num_answers)
        self.answer_prompts = [json.dumps(one.prompt, sort_keys=True) for one in prompts]
        monitor = answering(config, accelerator, setup, prompts, reference)
        self.monitor = replace(monitor, held_out=held_out_rewards(config, accelerator, setup))
        self.start_sums = self._sums()
        check, failure = self._answered()
        if failure is not None:
            if not start_rewards:
                raise failure
            logger.warning(
                "the start keeps its first rewards: judged again, it gets none (%s)", failure
            )
        self.start = self._measured(self.start_sums, check)
        self.start_rewards = check.judged or list(start_rewards)

    @out_of_memory_explained(
        "answers and held-out pairs were measured",
        "set a lower per_device_eval_batch_size and max_new_tokens",
    )
    def measure(self) -> Measured:
        """The policy as it is now.

        Raises:
            UnjudgedError: the judge fails on all of its answers.
        """
        sums, (check, failure) = self._sums(), self._answered()
        measured = self._measured(sums, check, self.start_rewards)
        if failure is not None:
            raise UnjudgedError(str(failure), measured) from failure
        return measured

    def _answered(self) -> tuple[Check, UserError | None]:
        """Answers with their rewards; without any where the judge fails on all, and why."""
        try:
            return self.monitor.check(), None
        except (RewardError, ConfigError) as failure:
            # The same answers again: their random numbers are the same.
            return replace(self.monitor, held_out=None).check(), failure

    @torch.no_grad()
    def _sums(self) -> list[tuple[float, float]]:
        """`[pairs]`: log-probs of the chosen and of the rejected answer."""
        scorer = self.setup.scorer
        found: dict[int, tuple[float, float]] = {}
        with scorer.evaluating(), self.accelerator.autocast():
            for some, _ in batches(self.examples, self.config.per_device_eval_batch_size, track):
                batch = scorer.batch([example.group() for example in some])
                sums = segment_sums(batch, scorer(batch)).view(-1, 2)  # [pairs, 2]
                for example, (chosen, rejected) in zip(some, sums.tolist(), strict=True):
                    found[id(example)] = chosen, rejected
        return [found[id(example)] for example in self.examples]

    def _measured(
        self,
        sums: Sequence[tuple[float, float]],
        check: Check,
        rewards_before: Sequence[float] | None = None,
    ) -> Measured:
        answers, rewards = check.answers, check.judged
        if check.unjudged:
            logger.warning(
                "%d of %d answers have no reward and are left out", check.unjudged, len(answers)
            )
        before = rewards_before if rewards and rewards_before is not None else rewards
        both = zip(sums, self.start_sums, strict=True)
        return Measured(
            pair_prompts=self.pair_prompts,
            implicit=[ahead(c - c0, r - r0) for (c, r), (c0, r0) in both],
            raw=[ahead(chosen, rejected) for chosen, rejected in sums],
            answer_prompts=self.answer_prompts,
            kl=[one["kl"] for one in answers],
            length=[float(one["num_tokens"]) for one in answers],
            reward=rewards,
            win_rate=[ahead(now, then) for now, then in zip(rewards, before, strict=True)],
            answers=[{"prompt": one["prompt"], "answer": one["answer"]} for one in answers],
            asked=self.asked,
        )


def ahead(one: float, other: float) -> float:
    """1 where the first is larger, 0.5 where they are equal; NaN where either is."""
    difference = one - other
    return difference if math.isnan(difference) else (difference > 0) + 0.5 * (difference == 0)
