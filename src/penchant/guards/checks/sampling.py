"""Rules over methods that sample their own answers."""

from __future__ import annotations

from collections.abc import Iterator

from penchant.core.findings import Finding, warning
from penchant.guards.checks.snapshot import Snapshot

HEALTHY_KL, DRIFTED_KL = (0.5, 10.0), 15.0


def reward_normalization(run: Snapshot) -> Iterator[Finding]:
    """A value head that learns rewards in whatever units they come."""
    config = run.config
    if not config.spec.needs(config.options).values or run.options.reward_normalization != "none":
        return
    yield warning(
        "reward-normalization",
        "reward_normalization is none: rewards enter in their own units, so the KL coefficient "
        "and the value head depend on their scale",
        "set reward_normalization to auto, or score_clip at least",
        {"reward_normalization": "none", "score_clip": run.options.score_clip},
    )


def kl_penalty(run: Snapshot) -> Iterator[Finding]:
    """Nothing that holds the policy near what it was."""
    config, options = run.config, run.options
    if not config.spec.needs_reference:
        return
    key = "init_kl_coef" if hasattr(options, "init_kl_coef") else "beta"
    if getattr(options, key) == 0:
        from penchant.rl.rewards.make import is_function

        # GRPO is often run without a penalty where functions judge, which cannot be talked into
        # anything as a model can, or whatever answers at an address.
        by_rules = all(map(is_function, options.reward))
        judged = config.spec.needs(options).values or not by_rules
        yield Finding(
            "no-kl-penalty",
            "warning" if judged else "note",
            f"{key} is 0: nothing holds the policy near its start, and a reward that can be gamed "
            "will be",
            f"set {key} to {config.options.__class__.model_fields[key].default}",
            {key: 0},
        )
    elif getattr(options, "adap_kl_ctrl", False):
        low, high = HEALTHY_KL
        if not low <= options.target_kl <= DRIFTED_KL:
            yield warning(
                "target-kl",
                f"target_kl {options.target_kl:g} nats per answer is outside {low:g} to {high:g}, "
                "between learning nothing and drifting",
                "set target_kl to 6",
                {"target_kl": options.target_kl, "range": [low, high]},
            )


RULES = (reward_normalization, kl_penalty)
