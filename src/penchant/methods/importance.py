"""Importance weights: answers that one engine drew, trained on by another that scores otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from penchant.methods.online import LARGEST_LOG_RATIO

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.experience import Advantages, Experience
    from penchant.methods.online import OnlineOptions


def reweighted(made: Advantages, experience: Experience, options: OnlineOptions) -> Advantages:
    """Advantages weighted by how much likelier the policy is than the engine to draw the answers.

    A surrogate loss is linear in its advantages, so that this weights the loss.

    Args:
        made: by the method.
        experience: with the engine's own log-probs, where weights are asked for.
        options: `importance_sampling`, `importance_sampling_cap`.
    """
    level = options.importance_level
    if level is None:
        return made
    weights, metrics = importance_weights(experience, level, options.importance_sampling_cap)
    return replace(made, advantages=made.advantages * weights, metrics={**made.metrics, **metrics})


def importance_weights(
    experience: Experience, level: Literal["token", "sequence"], cap: float
) -> tuple[Tensor, dict[str, float]]:
    """Ratios of scored to sampled probabilities, bounded, `[N]`, and what they say of the sampler.

    Args:
        experience: with `sampled_logprobs`, as the sampler processed them (temperature and
            filters included).
        level: `token` weights each token by its own ratio, at most `cap` (truncated importance
            sampling); `sequence` weights whole answers by the product of their tokens' ratios,
            and leaves out those above `cap`. They are TRL 1.16's `token_truncate` and
            `sequence_mask`, which is its default, with a cap of 3.
        cap: largest weight.
    """
    import torch

    assert experience.sampled_logprobs is not None
    log_ratio = experience.logprobs - experience.sampled_logprobs  # [N]
    token_ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    if level == "token":
        ratio = token_ratio
        weights = ratio.clamp(max=cap)
    else:
        ratio = experience.sums(log_ratio).clamp(max=LARGEST_LOG_RATIO).exp()  # [B]
        weights = torch.where(ratio > cap, 0.0, ratio)[experience.index]  # [N]
    metrics = {
        # Schulman's k3, whose terms are all positive: http://joschu.net/blog/kl-approx.html
        "sampling/kl": float((token_ratio - 1 - log_ratio).mean()),
        "sampling/ratio": float(ratio.mean()),
        "sampling/ratio_max": float(ratio.max()),
        "sampling/truncated": float((ratio > cap).float().mean()),
    }
    return weights, metrics
