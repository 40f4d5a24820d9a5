"""What a batch of sampled answers comes to, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from penchant.methods.experience import Experience
    from penchant.rl.rewards.judging import Scores
    from penchant.rl.scoring import Answer


def batch_metrics(
    answers: Sequence[Answer], scores: Scores, experience: Experience
) -> dict[str, float]:
    """Means over a batch.

    Args:
        answers: that have a reward.
        scores: of all that were sampled, dropped ones too.
        experience: of the answers.
    """
    metrics = _described(answers, scores)
    return {**metrics, **_compared(experience)} if answers else metrics


def _described(answers: Sequence[Answer], scores: Scores) -> dict[str, float]:
    """What can be said of a batch of answers without a model."""
    metrics = {"rollouts": float(len(answers)), "reward/dropped": float(scores.dropped)}
    judged = {"reward": scores.raw, "reward/normalized": scores.rewards if scores.raw else []}
    for name, values in judged.items():
        known = torch.tensor([v for v in values if v == v], dtype=torch.float64)
        if len(known):
            if not scores.relative:
                metrics[f"{name}/mean"] = float(known.mean())
            metrics[f"{name}/std"] = float(known.std(correction=0))
    for name, values in scores.by_name.items():
        known = torch.tensor([v for v in values if v == v], dtype=torch.float64)
        if len(scores.by_name) > 1 and len(known):
            metrics[f"reward/{name}"] = float(known.mean())
    if scores.disagreement:
        disagreement = torch.tensor(scores.disagreement, dtype=torch.float64)
        metrics["reward/disagreement"] = float(disagreement.nanmean())
    if answers:
        lengths = [len(a.completion.ids) for a in answers]
        metrics["completion/length"] = sum(lengths) / len(lengths)
        metrics["completion/ended"] = sum(a.completion.ended for a in answers) / len(answers)
    return metrics


def _compared(experience: Experience) -> dict[str, float]:
    """Divergence from the reference, entropy, and how far sampling and scoring disagree."""
    metrics = {}
    if experience.entropy is not None:
        metrics["entropy"] = float(experience.entropy.mean())
    if experience.divergence is not None:
        metrics["divergence"] = float(experience.divergence.mean())
    if experience.ref_logprobs is not None:
        log_ratio = experience.sums(experience.logprobs - experience.ref_logprobs)
        metrics["kl"] = float(log_ratio.sum() / len(experience.logprobs))
        metrics["kl/sequence"] = float(log_ratio.mean())
        if len(log_ratio) > 1:
            metrics["kl/sequence_error"] = float(log_ratio.std() / len(log_ratio) ** 0.5)
    if experience.sampled_logprobs is not None:
        difference = (experience.sampled_logprobs - experience.logprobs).abs()
        metrics["logprob/sampling_difference"] = float(difference.mean())
        metrics["logprob/sampling_difference_max"] = float(difference.max())
    return metrics
