"""The rewards of a run together: weighted, brought to one scale, limited and penalised."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import NamedTuple

from penchant.core.asking import Usage
from penchant.core.errors import ConfigError
from penchant.core.team import ALONE, Team
from penchant.methods.online import RewardOptions
from penchant.rl.rewards.attempts import attempt
from penchant.rl.rewards.models import EnsembleReward, ModelReward
from penchant.rl.rewards.pairwise_judge import compares
from penchant.rl.rewards.samples import Reward, Sample
from penchant.rl.rewards.shaping import RunningStatistics, Statistics, clip, penalties

logger = logging.getLogger("penchant")


@dataclass(frozen=True)
class Scores:
    """What a batch of samples is worth; every list has one entry a sample.

    Args:
        rewards: what training uses: weighted, normalised, clipped, less the penalties; NaN where
            a sample was dropped.
        raw: the weighted sum as the rewards gave it; NaN where a sample was dropped. Empty where
            there is no reward.
        given: what each reward gave, in their order; penalties: what all penalties added.
        by_name: what each reward gave, and what each penalty in use added (at most 0).
        dropped: how many samples were dropped.
        disagreement: the deviation over an ensemble's members, in units of their own; the mean of
            several ensembles, None without one.
        relative: every reward compares the answers to one prompt with one another, so that their
            mean is the same whatever the policy says.
    """

    rewards: list[float]
    raw: list[float]
    given: list[list[float]]
    penalties: list[float]
    by_name: dict[str, list[float]]
    dropped: int
    disagreement: list[float] | None
    relative: bool = False


class Asked(NamedTuple):
    """What one sample was given by each reward, and the deviations of each ensemble's members."""

    given: tuple[float, ...]
    deviations: tuple[float, ...]


class Rewards:
    """All that judges the samples of one run.

    Args:
        rewards: of different names; without any, every sample scores 0.
        options: weights, normalisation, clipping, penalties, and what an error means. Under
            `reward_normalization` `saved` each reward is normalised by the statistics of its own
            training, then weighted; under `running` the weighted sum, by mean and deviation of
            all that was seen, the present batch among it; `auto` is `saved` where every reward
            has statistics, else `running`.

    Attributes:
        normalization: what `auto` came to.
        findings: what the user should know about these rewards; whoever made them says it.
        say: is told what scoring adds to the findings; by default a warning of the log.

    Raises:
        ConfigError: `saved` statistics are asked for and absent.
    """

    def __init__(self, rewards: Sequence[Reward], options: RewardOptions) -> None:
        self.rewards, self.options = rewards, options
        self.weights = options.reward_weights or (1.0,) * len(rewards)
        self._saved = [getattr(reward, "statistics", None) for reward in rewards]
        self.normalization = _resolved(options.reward_normalization, rewards, self._saved)
        self._running = RunningStatistics()
        self.findings = [text for one in _models(rewards) for text in one.findings]
        self.say: Callable[[str], None] = partial(logger.warning, "%s")

    @property
    def shares_policy(self) -> bool:
        """Whether a model among them, or among an ensemble's, uses the policy's own weights."""
        return any(model.shares_policy for model in _models(self.rewards))

    @property
    def compares(self) -> bool:
        """Whether one of them compares the answers to one prompt with one another."""
        return any(map(compares, self.rewards))

    @property
    def alone(self) -> Rewards:
        """Those that judge an answer without others to its prompt; these themselves if all do."""
        if not self.compares:
            return self
        kept = [(w, one) for w, one in zip(self.weights, self.rewards, strict=True)
                if not compares(one)]  # fmt: skip
        weights = tuple(weight for weight, _ in kept) or None
        options = self.options.model_copy(update={"reward_weights": weights})
        return Rewards([one for _, one in kept], options)

    def ask(self, samples: Sequence[Sample], team: Team = ALONE) -> list[Asked]:
        """What each reward gives for each sample; the running statistics stay as they are.

        Args:
            samples: a process's share of a batch.
            team: the processes, all of which ask.

        Raises:
            RewardError: a reward cannot be called, fails on a sample where that is an error, or
                fails on all of the batch.
        """
        if not samples or not self.rewards:
            return [Asked((), ())] * len(samples)
        given, deviations = [], []
        for reward in self.rewards:
            values, apart = self._call(reward, samples, team)
            given.append(values)
            deviations += [apart] if apart is not None else []
        rows = zip(*given, strict=True)
        return [Asked(row, tuple(one[i] for one in deviations)) for i, row in enumerate(rows)]

    def score(self, samples: Sequence[Sample], asked: Sequence[Asked] | None = None) -> Scores:
        """Score samples, and take them into the running statistics.

        Args:
            samples: of a whole batch, by which rewards are normalised.
            asked: what `ask` gave for them, of all processes; default: the rewards are asked now.

        Raises:
            RewardError: as of `ask`.
        """
        if not samples or not self.rewards:
            unjudged = [0.0] * len(samples)
            return Scores(unjudged, [], [[] for _ in self.rewards], unjudged, {}, 0, None)
        rows = self.ask(samples) if asked is None else asked
        given = [list(values) for values in zip(*(row.given for row in rows), strict=True)]
        raw = [self._weighted(values) for values in zip(*given, strict=True)]
        self._running.update([value for value in raw if not math.isnan(value)])
        taken = [penalties(sample, self.options) for sample in samples]
        less = [math.fsum(each.values()) for each in taken]
        self._note_cuts()
        limit = self.options.score_clip
        return Scores(
            rewards=[
                clip(self._normalised(values, total), limit) + off
                for values, total, off in zip(zip(*given, strict=True), raw, less, strict=True)
            ],
            raw=raw,
            given=given,
            penalties=less,
            by_name={
                **{one.name: values for one, values in zip(self.rewards, given, strict=True)},
                **{name: [each[name] for each in taken] for name in taken[0]},
            },
            dropped=sum(map(math.isnan, raw)),
            disagreement=[mean(row.deviations) for row in rows if row.deviations] or None,
            relative=all(map(compares, self.rewards)),
        )

    def state_dict(self) -> dict[str, float]:
        """The running statistics, as JSON holds them exactly."""
        return self._running.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self._running.load_state_dict(state)

    def held_bytes(self) -> dict[str, int]:
        """Memory of each reward model's weights by name, beside the policy's."""
        return {model.name: model.held_bytes() for model in _models(self.rewards)}

    def usage(self) -> dict[str, Usage]:
        """What each judge and each service among the rewards was asked until now, by name."""
        asked = {one.name: getattr(one, "usage", None) for one in self.rewards}
        return {name: replace(usage) for name, usage in asked.items() if usage is not None}

    def _call(
        self, reward: Reward, samples: Sequence[Sample], team: Team
    ) -> tuple[list[float], list[float] | None]:
        on_error = self.options.on_reward_error
        if not isinstance(reward, EnsembleReward):
            return attempt(reward, samples, on_error, team), None
        return reward.combine([attempt(one, samples, on_error, team) for one in reward.members])

    def _weighted(self, values: Sequence[float]) -> float:
        return math.fsum(w * value for w, value in zip(self.weights, values, strict=True))

    def _normalised(self, values: Sequence[float], total: float) -> float:
        if math.isnan(total) or self.normalization == "none":
            return total
        if self.normalization == "running":
            return self._running.normalise(total)
        pairs = zip(self._saved, values, strict=True)
        return self._weighted([known.normalise(value) for known, value in pairs if known])

    def _note_cuts(self) -> None:
        for model in _models(self.rewards):
            text = f"reward {model.name} reads {model.tokens.max_length} tokens: longer samples "
            text += "lose the start of their prompt"
            if model.tokens.num_cut and text not in self.findings:
                self.findings.append(text)
                self.say(text)


def _models(rewards: Sequence[Reward]) -> list[ModelReward]:
    return [
        model
        for reward in rewards
        for model in (reward.members if isinstance(reward, EnsembleReward) else [reward])
        if isinstance(model, ModelReward)
    ]


def _resolved(wanted: str, rewards: Sequence[Reward], saved: Sequence[Statistics | None]) -> str:
    without = [one.name for one, known in zip(rewards, saved, strict=True) if known is None]
    if wanted == "saved" and without:
        raise ConfigError(
            f"reward_normalization saved needs reward_statistics.json of every reward, and "
            f"{', '.join(without)} has none; set it to running or auto"
        )
    if wanted != "auto":
        return wanted
    return "running" if without else "saved"
