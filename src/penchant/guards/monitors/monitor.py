"""What the policy says now: a fixed set of prompts, answered, measured and judged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.errors import RewardError
from penchant.core.team import ALONE, Team
from penchant.data.batch import Group, segment_sums
from penchant.guards.monitors import measures
from penchant.guards.monitors.everywhere import everywhere
from penchant.guards.monitors.measures import Measured
from penchant.objectives.held_out import Scored, score_both
from penchant.rl.rewards.samples import make_sample
from penchant.rl.sampling.base import Draw
from penchant.rl.sampling.text import answer_text
from penchant.training.optimizer import random_state, set_random_state

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from penchant.data.batch import TokenBatch
    from penchant.models.reference import Reference
    from penchant.models.scoring import Scorer
    from penchant.rl.rewards.make import Rewards
    from penchant.rl.rewards.samples import Sample
    from penchant.rl.sampling.base import Completion, Sampler, Sampling

# The same random numbers at every check: answers differ by the weights alone.
SEED = 30_000_001


@dataclass(frozen=True)
class MonitoredPrompt:
    """A prompt that is answered at every check: its ids, and the record that it comes from."""

    ids: list[int]
    prompt: Any
    fields: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Check:
    """What one check found: metrics by name, and a record for each answer."""

    metrics: dict[str, float]
    answers: list[dict[str, Any]]

    @property
    def judged(self) -> list[float]:
        """The reward of each answer, where there is a reward."""
        return [answer["reward"] for answer in self.answers if "reward" in answer]

    @property
    def unjudged(self) -> int:
        """Answers that have none, where there is a reward."""
        return sum(map(math.isnan, self.judged))


@dataclass(frozen=True)
class Monitor:
    """Answers prompts with the policy as it is, and measures the answers.

    Neither weights nor random states nor the rewards' statistics change.

    Attributes:
        prompts: at least one, distinct.
        scorer: the policy.
        reference: None where none is in memory.
        sampler, sampling: how answers are drawn.
        tokenizer: of the policy.
        rewards: what the run is trained on, if anything; held_out: what it is not trained on.
        batch_size: answers a scoring pass.
        autocast: of the run's precision.
        team: the processes that share the prompts.
    """

    prompts: Sequence[MonitoredPrompt]
    scorer: Scorer
    reference: Reference | None
    sampler: Sampler
    sampling: Sampling
    tokenizer: PreTrainedTokenizerBase
    rewards: Rewards | None
    held_out: Rewards | None
    batch_size: int
    autocast: Callable[[], Any]
    team: Team = ALONE

    def check(self, start: Sequence[float] = ()) -> Check:
        """Answer every prompt once.

        Args:
            start: rewards of the starting model's answers, which these are held against.
        """
        began = time.perf_counter()
        measured = self.team.together(self._share())
        completions = [one.completion for one in measured]
        texts = [answer_text(c.ids, self.tokenizer, ended=c.ended) for c in completions]
        scored, judged = measures.scored(measured), measures.judged(measured)
        metrics = {**scored.metrics, **measures.described(completions, texts), **judged.metrics}
        if start and len(judged.each) == len(start):
            metrics["win_rate"] = measures.win_rate(judged.each, start)
        metrics["seconds"] = self.team.agree(time.perf_counter() - began)
        answers = []
        for i, (prompt, text) in enumerate(zip(self.prompts, texts, strict=True)):
            record = {"prompt": prompt.prompt, "answer": text.strip()}
            record |= {"num_tokens": len(completions[i].ids), "ended": completions[i].ended}
            record |= {"reward": judged.each[i]} if judged.each else {}
            answers.append(record | ({"kl": scored.each[i]} if scored.each else {}))
        return Check({f"monitor/{name}": value for name, value in metrics.items()}, answers)

    def _share(self) -> list[Measured]:
        """This process's answers, with all that is known of each of them alone."""
        rounds = self.team.rounds(range(len(self.prompts)))
        numbers = [number for number, _ in rounds]
        prompts = [self.prompts[number] for number in numbers]
        sharded = self.scorer.is_sharded  # its passes are of all processes
        borrowed = any(rewards.shares_policy for _, rewards in self._rewards())
        answer = partial(self._answered, prompts, numbers)
        with _undisturbed(), self.autocast():
            everywhere(self.team, self.sampler.sync, in_step=True)
            completions, sums = everywhere(self.team, answer, in_step=sharded)
            judge = partial(self._rewarded, prompts, completions)
            judged = everywhere(self.team, judge, in_step=sharded and borrowed)
        return [
            Measured(
                completions[i],
                {name: column[i] for name, column in sums.items()},
                {name: (raw[i], apart[i]) for name, (raw, apart) in judged.items()},
            )
            for i, (_, counts) in enumerate(rounds)
            if counts
        ]

    def _answered(
        self, prompts: Sequence[MonitoredPrompt], numbers: Sequence[int]
    ) -> tuple[list[Completion], dict[str, Tensor]]:
        """An answer to each prompt, and the sums over each answer, `[answers]`, by name."""
        drawn = self.sampler.sample(
            [p.ids for p in prompts], Draw(self.sampling, SEED, numbers=numbers)
        )
        completions = [completion for (completion,) in drawn]
        groups = [Group(p.ids, (c.ids,)) for p, c in zip(prompts, completions, strict=True)]
        return completions, self._scored(groups)

    def _rewarded(
        self, prompts: Sequence[MonitoredPrompt], completions: Sequence[Completion]
    ) -> dict[str, tuple[list[float], list[float]]]:
        """Rewards and disagreements of the answers, by the name of the rewards."""
        samples = [
            make_sample(prompt, prompt.ids, completion, self.tokenizer)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return {name: _raw(rewards, samples, self.team) for name, rewards in self._rewards()}

    def _rewards(self) -> list[tuple[str, Rewards]]:
        both = (("held_out_reward", self.held_out), ("reward", self.rewards))
        return [(name, found) for name, found in both if found is not None and found.rewards]

    @torch.no_grad()
    def _scored(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """`[answers]` in fp64, by name."""
        with self.scorer.evaluating():
            sums: dict[str, list[Tensor]] = {}
            for first in range(0, len(groups), self.batch_size):
                for name, values in self._sums(groups[first : first + self.batch_size]).items():
                    sums.setdefault(name, []).append(values.cpu().double())
        return {name: torch.cat(parts) for name, parts in sums.items()}

    def _sums(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Sums over each answer, `[answers]` each, and how many tokens each has."""
        batch = self.scorer.batch(groups)
        both = self._beside_reference(groups, batch)
        assert both.entropy is not None
        sums = {"tokens": batch.completion_lengths, "logprob": segment_sums(batch, both.logprobs)}
        sums["entropy"] = segment_sums(batch, both.entropy)
        if both.ref_sums is not None:
            sums["ref_logprob"] = both.ref_sums
        if both.kl is not None:
            sums["kl"] = segment_sums(batch, both.kl)
        return sums

    def _beside_reference(self, groups: Sequence[Group], batch: TokenBatch) -> Scored:
        """One pass of the policy, and one of the reference where there is one."""
        reference, ref_sums = self.reference, None
        if reference is not None and not self.scorer.is_filtered:
            both = score_both(self.scorer, reference, groups, batch)
            if both.entropy is not None:
                return both
            ref_sums = both.ref_sums
        logprobs, entropy = self.scorer(batch, also="entropy")
        if reference is not None and ref_sums is None:
            ref_sums = reference.sums(groups, batch)
        return Scored(logprobs, ref_sums, None, entropy)


def _raw(
    rewards: Rewards, samples: Sequence[Sample], team: Team
) -> tuple[list[float], list[float]]:
    """Rewards and disagreements of samples; running statistics stay as they are.

    Where samples without a reward are dropped, one of several processes may lose its whole share.
    """
    unknown = [math.nan] * len(samples)
    before = rewards.state_dict()
    try:
        scores = rewards.score(samples)
    except RewardError:
        if team.size == 1 or rewards.options.on_reward_error == "raise":
            raise
        return unknown, unknown
    rewards.load_state_dict(before)
    return scores.raw, scores.disagreement or unknown


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Give torch's random state back: a reward may draw from it."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
