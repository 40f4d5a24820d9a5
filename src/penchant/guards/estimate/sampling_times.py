"""How long answers take: sampled, judged and scored, from a few short ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.rl.rollout import Rollout
    from penchant.training.setup import Setup

# Tokens of an answer in the probe's two rounds.
LENGTHS = (2, 16)
PROBE_SEED = 30_000_001


@dataclass(frozen=True)
class SamplingTimes:
    """Seconds of a round of answers, in one process of the run.

    Attributes:
        prefill: to read the prompts of one batch of answers; decode: of one more token for it.
        reward: of one answer; scored: of one token under the models.
        ending: probability that an answer ends with any token.
        prompt_length: mean, in tokens, by answer; answer_length: expected.
        rollouts: to train on in a probe, as many to a prompt as are and as long as is expected.
    """

    prefill: float
    decode: float
    reward: float
    scored: float
    ending: float
    prompt_length: float
    answer_length: float
    rollouts: Sequence[Rollout]

    def of(self, config: RunConfig, num_answers: int) -> dict[str, float]:
        """Seconds of one round.

        Args:
            config: of the run.
            num_answers: sampled in it.
        """
        options: Any = config.options
        side_by_side = min(options.generation_batch_size, num_answers)
        batches = num_answers / side_by_side
        steps = longest_answer(self.ending, options.max_completion_length, side_by_side)
        tokens = num_answers * (self.prompt_length + self.answer_length)
        return {
            "generation": batches * (self.prefill + self.decode * steps),
            "rewards": self.reward * num_answers,
            "scoring": self.scored * tokens,
        }


def expected_length(ending: float, limit: int) -> float:
    """Tokens of an answer that ends with any token with probability `ending`, `limit` at most."""
    return limit if ending <= 0 else (1 - (1 - ending) ** limit) / ending


def longest_answer(ending: float, limit: int, count: int) -> float:
    """Expected tokens of the longest of `count` such answers."""
    return sum(1 - (1 - (1 - ending) ** t) ** count for t in range(limit))


def probe_sampling(config: RunConfig, setup: Setup, accelerator: Accelerator) -> SamplingTimes:
    """Answer a few of the training prompts; the running statistics of rewards stay as they are.

    Args:
        config, setup, accelerator: of the run.
    """
    assert setup.collector is not None
    options: Any = config.options
    limit = int(options.max_completion_length)
    collector = setup.collector
    size = collector.team.size
    # Each process answers as many side by side as it will in the run.
    side_by_side = min(options.generation_batch_size * size, options.batch_size)
    prompts = _middle(setup.train_set, max(1, side_by_side // options.generations))
    before = setup.collector.rewards.state_dict()
    rounds: list[Any] = []
    for length in (min(LENGTHS[0], limit), min(LENGTHS[1], limit)):
        sampling = replace(setup.collector.sampling, max_completion_length=length)
        collector = replace(collector, sampling=sampling)
        if not rounds:  # kernels are chosen
            collector.collect(prompts, PROBE_SEED)
        rounds.append(collector.collect(prompts, PROBE_SEED))
    setup.collector.rewards.load_state_dict(before)
    short, long = (r.metrics["seconds/generation"] for r in rounds)
    judged = rounds[-1]
    completions = [answer.completion for answer in judged.answers]
    ending = sum(c.ended for c in completions) / max(1, sum(len(c.ids) for c in completions))
    # The answers are those of all processes; the seconds are the leader's, for its share of them.
    timed = [[a for a in r.answers if a.number % size == 0] for r in rounds]
    steps = [max((len(a.completion.ids) for a in answers), default=1) for answers in timed]
    decode = max(0.0, long - short) / max(1, steps[1] - steps[0])
    if steps[1] == steps[0]:
        decode = long / steps[1]
    laid = sum(len(a.prompt.prompt) + len(a.completion.ids) for a in timed[-1])
    expected = expected_length(ending, limit)
    return SamplingTimes(
        prefill=max(0.0, long - decode * steps[1]),
        decode=decode,
        reward=judged.metrics["seconds/reward"] / max(1, len(timed[-1])),
        scored=judged.metrics["seconds/scoring"] / max(1, laid),
        ending=ending,
        prompt_length=sum(len(p.prompt) for p in setup.train_set) / len(setup.train_set),
        answer_length=expected,
        rollouts=_rollouts(config, setup, prompts, max(1, math.ceil(expected))),
    )


def _middle(examples: Sequence[Any], count: int) -> list[Any]:
    """So many prompts of like length, neither short nor long."""
    ordered = sorted(examples, key=lambda e: len(e.prompt))
    first = max(0, (len(ordered) - count) // 2)
    return list(ordered[first : first + count])


def _rollouts(
    config: RunConfig, setup: Setup, prompts: Sequence[Any], length: int
) -> list[Rollout]:
    """Stand-ins for answers of the expected length, at least two micro-batches of them."""
    from penchant.rl.rollout import Rollout
    from penchant.training.rollouts import probe_groups

    options: Any = config.options
    needs = config.spec.needs(options)
    column = torch.zeros(length)
    ordered = sorted(setup.train_set, key=lambda e: len(e.prompt))
    trained = options.trained_generations
    count = math.ceil(2 * config.per_device_train_batch_size / trained) + 1
    picked = [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]
    groups = probe_groups(picked, length)
    return [
        Rollout(
            prompt=list(group.prompt),
            completion=list(group.completions[0]),
            where="probe",
            number=number,
            logprobs=column,
            advantages=column + 1,
            ref_logprobs=column if setup.reference is not None else None,
            values=column if needs.values else None,
            returns=column if needs.values else None,
        )
        for number, group in enumerate(groups)
        for _ in range(trained)
    ]
