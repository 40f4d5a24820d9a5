"""Rollouts: prompts answered, scored by the rewards, and held against the reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from penchant.core.machine import release_memory
from penchant.core.team import ALONE, Team
from penchant.data.batch import Group
from penchant.methods.experience import Advantages, Experience
from penchant.rl.metrics import batch_metrics
from penchant.rl.rewards.samples import Sample, make_sample
from penchant.rl.sampling.base import Draw
from penchant.rl.scoring import Answer, Scoring, agree, drawn_columns

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from penchant.data.tokenised import TokenisedPrompt
    from penchant.models.policy import PolicyScorer
    from penchant.models.reference import Reference
    from penchant.models.teacher import Teacher
    from penchant.rl.rewards.judging import Asked, Rewards, Scores
    from penchant.rl.sampling.base import Completion, Sampler, Sampling


@dataclass(frozen=True)
class Rollout:
    """One answer and what a training pass needs of it; tensors are `[T]`, on the CPU.

    Attributes:
        prompt, completion: token ids.
        where: names the prompt's row; number: of the prompt within its batch.
        logprobs: under the policy that sampled it; ref_logprobs: under the reference.
        values: of the value head at that time; returns: what it should have said.
        advantages: of each token.
    """

    prompt: list[int]
    completion: list[int]
    where: str
    number: int
    logprobs: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def group(self) -> Group:
        """For the batch: a prompt with one completion."""
        return Group(self.prompt, (self.completion,))


class _Known(NamedTuple):
    """One answer with what its process found of it: rewards, and `[T]` columns of the models."""

    number: int
    completion: Completion
    asked: Asked
    columns: dict[str, Tensor]


@dataclass(frozen=True)
class Judged:
    """Answers that have a reward, with everything that is known of them."""

    answers: list[Answer]
    texts: list[str]
    scores: Scores
    experience: Experience
    metrics: dict[str, float]


@dataclass
class Collector:
    """Makes experience from prompts.

    Attributes:
        policy: scores and, through `sampler`, answers.
        reference: None where a method compares with none.
        sampler, sampling: how answers are drawn.
        rewards: what judges them.
        tokenizer: of the policy.
        num_generations: answers a prompt.
        full_kl: also the exact divergence of every token.
        teacher: whose divergence is told of answers that are scored; None without one.
        scored: whether the models score answers before they are trained on, or their sampler's
            own log-probs stand for that.
        batch_size: answers a scoring pass.
        autocast: of the run's precision.
        team: the processes that share the prompts.
        reuses: whether what the sampler tells of its answers may stand for a pass of the policy.
        agrees: whether it does, as the first answers have shown; None before there are any.
    """

    policy: PolicyScorer
    reference: Reference | None
    sampler: Sampler
    sampling: Sampling
    rewards: Rewards
    tokenizer: PreTrainedTokenizerBase
    num_generations: int = 1
    full_kl: bool = False
    teacher: Teacher | None = None
    scored: bool = True
    batch_size: int = 8
    autocast: Callable[[], Any] = field(default=lambda: torch.autocast("cpu", enabled=False))
    team: Team = ALONE
    reuses: bool = False
    agrees: bool | None = None

    def __post_init__(self) -> None:
        self._at_first = self.rewards.state_dict(), self.rewards.options

    def reset(self) -> None:
        """Forget what was learned of the rewards and the sampler, and raised penalties."""
        state, self.rewards.options = self._at_first
        self.rewards.load_state_dict(state)
        self.agrees = None

    def collect(self, prompts: Sequence[TokenisedPrompt], seed: int, first: int = 0) -> Judged:
        """Answer, judge and, where that is asked for, score; without what the rewards dropped.

        Args:
            prompts: at least one.
            seed: of the random numbers, which depend on it and on each prompt's number alone.
            first: the number of the first prompt; the others follow.
        """
        clock = _Clock()
        # Prompts that stand in keep the passes of all processes equally many.
        rounds = self.team.rounds(range(len(prompts)))
        own = self._answer(prompts, [number for number, _ in rounds], seed, first)
        release_memory()  # of the key-value cache
        clock.lap("generation")
        asked = self.rewards.ask(self._samples(own), self.team)
        clock.lap("reward")
        columns, scored = self._columns(own)
        release_memory()
        clock.lap("scoring")
        n = self.num_generations
        rows = [
            _Known(answer.number, answer.completion, given, column)
            for answer, given, column in zip(own, asked, columns, strict=True)
        ]
        whole = [rows[i * n : (i + 1) * n] for i, (_, counts) in enumerate(rounds) if counts]
        rows = [row for some in self.team.together(whole) for row in some]
        answers = [Answer(prompts[r.number - first], r.number, r.completion) for r in rows]
        samples = self._samples(answers)
        scores = self.rewards.score(samples, [row.asked for row in rows])
        kept = [i for i, reward in enumerate(scores.rewards) if reward == reward]
        answers = [answers[i] for i in kept]
        experience = _experience(answers, scores, kept, [rows[i].columns for i in kept], scored)
        metrics = batch_metrics(answers, scores, experience) | self.team.agree(clock.seconds)
        texts = [samples[i].completion for i in kept]
        return Judged(answers, texts, scores, experience, metrics)

    def _answer(
        self, prompts: Sequence[TokenisedPrompt], places: Sequence[int], seed: int, first: int
    ) -> list[Answer]:
        """Answers to the prompts in these places, those to one prompt together."""
        self.sampler.sync()
        numbers = [first + i for i in places]
        draw = Draw(self.sampling, seed, self.num_generations, numbers, tells=self._asks)
        with self.autocast():
            drawn = self.sampler.sample([prompts[i].prompt for i in places], draw)
        return [
            Answer(prompts[i], first + i, completion)
            for i, completions in zip(places, drawn, strict=True)
            for completion in completions
        ]

    @property
    def _asks(self) -> bool:
        """Whether the sampler is asked for what a pass of the policy would say."""
        able = getattr(self.sampler, "tells", False) and not self.full_kl
        return self.reuses and self.scored and able and self.agrees is not False

    def _columns(self, own: Sequence[Answer]) -> tuple[list[dict[str, Tensor]], bool]:
        """`[T]` of each answer by name, and whether a pass of the policy has told it."""
        drawn = drawn_columns(own) if self._asks or not self.scored else None
        if drawn is not None and not self.scored:
            return drawn, False
        wanted = {"logprobs", "entropy", *(["values"] if self.policy.value_head else [])}
        if drawn is None or any(column.keys() != wanted for column in drawn):
            return self.scoring.columns(own), True
        if self.agrees:
            return self.scoring.columns(own, drawn), False
        columns = self.scoring.columns(own)
        verdicts = self.team.gather(agree(drawn, columns))
        self.agrees = False if False in verdicts else None if None in verdicts else True
        return columns, True

    @property
    def scoring(self) -> Scoring:
        """What the models say of answers, as they are now."""
        return Scoring(
            self.policy, self.reference, self.teacher, self.full_kl, self.batch_size, self.autocast
        )

    def _samples(self, answers: Sequence[Answer]) -> list[Sample]:
        return [
            make_sample(a.prompt.record, a.prompt.prompt, a.completion, self.tokenizer, a.number)
            for a in answers
        ]

    def peek(self, prompts: Sequence[TokenisedPrompt], seed: int) -> dict[str, float]:
        """Metrics of answers to held-out prompts, scored; running statistics stay as they are.

        Rewards that compare the answers to one prompt are left out: there is one.
        """
        before = self.rewards.state_dict()
        alone = replace(self, rewards=self.rewards.alone, scored=True, reuses=False)
        metrics = alone.collect(prompts, seed).metrics
        self.rewards.load_state_dict(before)
        return metrics

    def draw_samples(
        self, prompts: Sequence[TokenisedPrompt], seed: int, n: int = 1
    ) -> list[Sample]:
        """`n` answers to each prompt, as the rewards read them; nothing is scored."""
        self.sampler.sync()
        with self.autocast():
            drawn = self.sampler.sample([p.prompt for p in prompts], Draw(self.sampling, seed, n))
        return [
            make_sample(p.record, p.prompt, completion, self.tokenizer, number)
            for number, (p, completions) in enumerate(zip(prompts, drawn, strict=True))
            for completion in completions
        ]


def _experience(
    answers: Sequence[Answer],
    scores: Scores,
    kept: Sequence[int],
    columns: Sequence[dict[str, Tensor]],
    scored: bool,
) -> Experience:
    """Everything that is said of the answers, in their order; `kept` of the scores are theirs.

    `scored` tells whether log-probs are others than the sampler's.
    """
    laid = {
        name: torch.cat([column[name] for column in columns])
        for name in (columns[0] if columns else {})
    }
    sampled = torch.tensor([p for a in answers for p in a.completion.logprobs])
    logprobs = laid.get("logprobs", torch.zeros(0))
    scored = scored and len(sampled) == len(logprobs)
    return Experience(
        lengths=torch.tensor([len(a.completion.ids) for a in answers], dtype=torch.long),
        group=torch.tensor([a.number for a in answers], dtype=torch.long),
        scores=_column(scores.rewards, kept),
        ended=torch.tensor([a.completion.ended for a in answers], dtype=torch.bool),
        by_reward=torch.stack([_column(given, kept) for given in scores.given], 1)
        if scores.given
        else None,
        penalties=_column(scores.penalties, kept),
        logprobs=logprobs,
        ref_logprobs=laid.get("ref_logprobs"),
        full_kl=laid.get("full_kl"),
        values=laid.get("values"),
        entropy=laid.get("entropy"),
        sampled_logprobs=sampled if scored else None,
        divergence=laid.get("divergence"),
    )


def make_rollouts(judged: Judged, estimate: Advantages) -> list[Rollout]:
    """What a training pass sees: one rollout an answer, those left out that teach nothing."""
    experience = judged.experience
    lengths = experience.lengths.tolist()
    columns = {
        "logprobs": experience.logprobs,
        "advantages": estimate.advantages,
        "ref_logprobs": experience.ref_logprobs,
        "values": experience.values,
        "returns": estimate.returns,
    }
    pieces = {name: c.split(lengths) for name, c in columns.items() if c is not None}
    kept = [True] * len(lengths) if estimate.kept is None else estimate.kept.tolist()
    return [
        Rollout(
            prompt=answer.prompt.prompt,
            completion=answer.completion.ids,
            where=answer.prompt.where,
            number=answer.number,
            **{name: piece[i] for name, piece in pieces.items()},
        )
        for i, answer in enumerate(judged.answers)
        if kept[i]
    ]


def _column(values: Sequence[float], kept: Sequence[int]) -> Tensor:
    return torch.tensor([values[i] for i in kept], dtype=torch.float32)


class _Clock:
    """Seconds of each part of a collection."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"] = now - self._last
        self._last = now
