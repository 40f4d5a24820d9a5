"""What the answers of a check come to, in numbers: functions of what is known of each answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from penchant.core.errors import RewardError
from penchant.guards.monitors.diversity import distinct, repetition, same_opening, self_bleu

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.rl.sampling.base import Completion


@dataclass(frozen=True)
class Measured:
    """One answer, its sums by name, and by the name of its rewards what they gave: the reward and
    the disagreement of an ensemble, NaN without one."""

    completion: Completion
    sums: dict[str, Tensor]
    rewards: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Means:
    """What the models or the rewards say of all answers.

    Attributes:
        metrics: by name.
        each: the divergence or the reward of each answer; empty where there is none.
    """

    metrics: dict[str, float]
    each: list[float]


def scored(measured: Sequence[Measured]) -> Means:
    """Divergence, entropy and perplexity, of what was summed over each answer."""
    sums = {n: torch.stack([one.sums[n] for one in measured]) for n in measured[0].sums}
    tokens = sums["tokens"].sum()
    metrics = {"entropy": float(sums["entropy"].sum() / tokens)}
    kl = sums.get("kl")
    if "ref_logprob" in sums:
        metrics["ref_perplexity"] = float((-sums["ref_logprob"].sum() / tokens).exp())
        # The sum of exact divergences along an answer has the same mean as its log-ratio, with a
        # fraction of the variance; the log-ratio is what there is where heads cannot be compared.
        kl = sums["logprob"] - sums["ref_logprob"] if kl is None else kl
    if kl is None:
        return Means(metrics, [])
    metrics |= {"kl_sequence": float(kl.mean()), "kl": float(kl.sum() / tokens)}
    if len(kl) > 1:
        metrics["kl_error"] = float(kl.std() / len(kl) ** 0.5)
    return Means(metrics, kl.tolist())


def described(completions: Sequence[Completion], texts: Sequence[str]) -> dict[str, float]:
    """How varied and how long the answers are."""
    ids = [one.ids[:-1] if one.ended else one.ids for one in completions]
    words = [text.lower().split() for text in texts]
    return {
        **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
        "self_bleu": self_bleu(ids),
        "same_opening": same_opening(words),
        "repetition": repetition(ids),
        "length": sum(len(one.ids) for one in completions) / len(completions),
        "ended": sum(one.ended for one in completions) / len(completions),
    }


def judged(measured: Sequence[Measured]) -> Means:
    """Means of the rewards; the value of an answer is what the last of them gave.

    Raises:
        RewardError: one of them gave no answer anything.
    """
    metrics: dict[str, float] = {}
    each: list[float] = []
    for name in measured[0].rewards:
        each = [one.rewards[name][0] for one in measured]
        if all(map(math.isnan, each)):
            raise RewardError(f"{name}: no answer has one")
        metrics |= _moments(name, each)
        apart = [one.rewards[name][1] for one in measured]
        disagreement = torch.tensor(apart, dtype=torch.float64)
        if name == "reward" and not disagreement.isnan().all():
            metrics["reward_disagreement"] = float(disagreement.nanmean())
    if each and "reward" not in metrics:
        metrics |= _moments("reward", each)
    return Means(metrics, each)


def _moments(name: str, values: Sequence[float]) -> dict[str, float]:
    known = torch.tensor([v for v in values if v == v], dtype=torch.float64)
    if not len(known):
        return {}
    std = float(known.std(correction=0))
    metrics = {name: float(known.mean()), f"{name}_std": std}
    return {**metrics, f"{name}_error": std / len(known) ** 0.5}


def win_rate(now: Sequence[float], start: Sequence[float]) -> float:
    """The share of prompts whose answer has the higher reward; equal ones count half."""
    pairs = [(a, b) for a, b in zip(now, start, strict=True) if a == a and b == b]
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    return wins / len(pairs) if pairs else 0.5
