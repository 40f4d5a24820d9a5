"""Proximal Policy Optimization (Schulman et al. 2017, https://arxiv.org/abs/1707.06347)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from penchant.methods.base import Facts, LossOutput, Method, Needs
from penchant.methods.experience import RolloutInputs
from penchant.methods.online import OnlineOptions, clipped, policy_metrics, ratio_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from penchant.methods.experience import Advantages, Experience


class PPOOptions(OnlineOptions):
    """Options of PPO."""

    ppo_epochs: int = Field(4, ge=1, description="Training passes over each batch of answers.")
    kl_penalty: Literal["kl", "abs", "mse", "full"] = Field(
        "kl", description="What a token is charged: the log-ratio to the reference, its absolute "
        "value, half its square, or the exact divergence."
    )  # fmt: skip
    init_kl_coef: float = Field(0.2, ge=0, description="Weight of the penalty, at first.")
    adap_kl_ctrl: bool = Field(True, description="Steer the weight towards target_kl.")
    target_kl: float = Field(6.0, gt=0, description="Nats an answer that steering aims at.")
    horizon: float = Field(10000.0, gt=0, description="Answers over which the weight moves.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of rewards.")
    lam: float = Field(0.95, ge=0, le=1, description="Discount of advantages (GAE).")
    cliprange: float = Field(0.2, gt=0, description="The policy's ratio is clipped around 1.")
    cliprange_value: float = Field(0.2, gt=0, description="Values are clipped around the old.")
    vf_coef: float = Field(0.1, ge=0, description="Weight of the value loss.")
    whiten_rewards: bool = Field(False, description="Scale token rewards to unit variance.")
    ratio_threshold: float = Field(
        10.0, gt=1, description="Mini-batches whose mean ratio is above this are skipped."
    )
    early_stopping_kl: float | None = Field(
        None, gt=0, description="Sample again once the policy has moved this far from the one that "
        "sampled, in nats per token."
    )  # fmt: skip
    value_model: Literal["shared", "copy"] = Field(
        "shared", description="The value head stands on the policy, or on a model of its own."
    )

    @model_validator(mode="after")
    def _steerable(self) -> Self:
        if self.adap_kl_ctrl and self.init_kl_coef == 0 and "adap_kl_ctrl" in self.model_fields_set:
            raise ValueError("adap_kl_ctrl multiplies init_kl_coef, and 0 stays 0; raise it")
        return self

    @property
    def epochs(self) -> int:
        return self.ppo_epochs


def ppo_advantages(experience: Experience, kl_coef: float, options: PPOOptions) -> Advantages:
    """Token rewards, generalised advantages (whitened) and returns.

    The score is paid at the last token, the divergence from the reference at every one
    (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593).

    Args:
        experience: with values and reference log-probs.
        kl_coef: weight of the penalty now.
        options: `kl_penalty`, `gamma`, `lam`, `whiten_rewards`.
    """
    from penchant.methods.advantages import add_at_ends, gae, whiten
    from penchant.methods.experience import Advantages
    from penchant.methods.kl import kl_penalty

    assert experience.ref_logprobs is not None and experience.values is not None
    penalty = kl_penalty(
        options.kl_penalty, experience.logprobs, experience.ref_logprobs, experience.full_kl
    )
    non_score = -kl_coef * penalty
    rewards = add_at_ends(non_score, experience.lengths, experience.scores)
    paid = whiten(rewards, shift_mean=False) if options.whiten_rewards else rewards
    advantages, returns = gae(
        paid, experience.values, experience.lengths, gamma=options.gamma, lam=options.lam
    )
    metrics = {
        "objective/kl": float(experience.sums(penalty).mean()),
        "objective/kl_coef": kl_coef,
        "objective/non_score_reward": float(experience.sums(non_score).mean()),
        "returns/mean": float(returns.mean()),
        "value/mean": float(experience.values.mean()),
        "value/explained": _explained(returns, experience.values),
    }
    return Advantages(whiten(advantages), returns, metrics=metrics)


def _explained(returns: Tensor, values: Tensor) -> float:
    """Share of the returns' variance that the values predicted; 0 where there is none."""
    variance = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / variance if variance else 0.0


def ppo_loss(inputs: RolloutInputs, options: PPOOptions) -> LossOutput:
    """Clipped policy and value losses, means over tokens, [B].

    Args:
        inputs: with values and returns.
        options: `cliprange`, `cliprange_value`, `vf_coef`, `entropy_coef`.

    Source:
        Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), Eq. 7 and 9; values are clipped as
        in their code, and as in TRL 0.11.
    """
    import torch

    assert inputs.values is not None and inputs.old_values is not None
    assert inputs.returns is not None
    ratio = ratio_of(inputs.logprobs - inputs.old_logprobs)
    policy, policy_clipped = clipped(
        ratio, inputs.advantages, 1 - options.cliprange, 1 + options.cliprange
    )
    moved = inputs.values - inputs.old_values
    bounded = inputs.old_values + moved.clamp(-options.cliprange_value, options.cliprange_value)
    free_error = (inputs.values - inputs.returns).square()
    bounded_error = (bounded - inputs.returns).square()
    value = 0.5 * torch.maximum(free_error, bounded_error)
    policy_loss, value_loss = inputs.token_means(policy), inputs.token_means(value)
    loss = policy_loss + options.vf_coef * value_loss
    if options.entropy_coef:
        loss = loss - options.entropy_coef * inputs.token_means(inputs.entropy)
    value_clipped = (bounded_error > free_error).detach().to(ratio.dtype)
    metrics = policy_metrics(inputs, inputs.token_means(policy_clipped))
    metrics |= {
        "loss/policy": policy_loss.detach(),
        "loss/value": value_loss.detach(),
        "value/clipfrac": inputs.token_means(value_clipped),
        "value/error": inputs.token_means(free_error.detach()),
    }
    return LossOutput(loss, metrics)


def too_far(metrics: Mapping[str, float], options: PPOOptions) -> bool:
    """Whether a mini-batch is so far from the policy that sampled it that it teaches nothing."""
    return metrics["policy/ratio"] > options.ratio_threshold


PPO = Method(
    name="ppo",
    title="Proximal Policy Optimization",
    data="prompts",
    needs_reference=True,
    options=PPOOptions,
    loss=ppo_loss,
    advantages=ppo_advantages,
    veto=too_far,
    needs=lambda options: Needs(
        values=True,
        full_kl=options.kl_penalty == "full",
        entropy_gradient=options.entropy_coef > 0,
    ),
    facts=Facts(
        data="prompts and a reward (a model or a function)",
        models_in_memory="4 (policy, reference, value, reward); with LoRA 1 backbone",
        stability="fragile",
        when="a shaped reward that pairwise preferences cannot express",
        paper="https://arxiv.org/abs/1707.06347",
        learning_rate=1e-5,
        learning_rate_lora=1e-4,
        learning_rate_range=(1e-7, 1.5e-5),
    ),
)
