"""Group Relative Policy Optimization (Shao et al. 2024, https://arxiv.org/abs/2402.03300)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from penchant.methods.base import LossOutput
from penchant.methods.experience import RolloutInputs
from penchant.methods.grouped import GroupOptions, group_facts, group_method, kept_answers
from penchant.methods.online import LARGEST_LOG_RATIO, clipped, policy_metrics, ratio_of

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.experience import Advantages, Experience


class GRPOOptions(GroupOptions):
    """Options of GRPO."""

    beta: float = Field(0.04, ge=0, description="Weight of the divergence from the reference.")
    kl_in_reward: bool = Field(
        False, description="Charge the divergence to the reward, not to the loss."
    )
    use_bias_correction_kl: bool = Field(
        True, description="Weight the loss's divergence with the ratio: its true gradient."
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Whose deviation advantages are divided by (none: Dr. GRPO)."
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize", description="Several rewards are summed, then compared, or each is "
        "first brought to mean 0 and deviation 1 within its group (GDPO)."
    )  # fmt: skip
    loss_type: Literal["grpo", "dapo", "dr_grpo", "cispo"] = Field(
        "dapo", description="Mean over the tokens of each answer (grpo) or of the mini-batch "
        "(dapo), or their sum divided by max_completion_length (dr_grpo). cispo: as dapo, with the "
        "ratio a bounded weight, so that no token loses its gradient."
    )  # fmt: skip
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Ratios of tokens, or of whole answers (GSPO)."
    )

    @model_validator(mode="after")
    def _one_normalisation(self) -> Self:
        if self.multi_objective_aggregation == "normalize_then_sum":
            for key, free in {"reward_normalization": "auto", "score_clip": None}.items():
                if getattr(self, key) not in (free, "none"):
                    raise ValueError(
                        f"normalize_then_sum normalises each reward within its group, after which "
                        f"{key} changes nothing; drop one of the two"
                    )
            if self.scale_rewards != "group":
                raise ValueError(
                    "normalize_then_sum divides by the deviation of each group and then of the "
                    f"batch; scale_rewards {self.scale_rewards} does not go with it: drop one"
                )
        return self


def grpo_advantages(experience: Experience, kl_coef: float, options: GRPOOptions) -> Advantages:
    """Rewards minus the group's mean, divided by its deviation; the same for all tokens.

    Shao et al. 2024 (https://arxiv.org/abs/2402.03300), 4.1; without the division Liu et al. 2025
    (https://arxiv.org/abs/2503.20783).

    Args:
        experience: of whole groups.
        kl_coef: not read: GRPO's weight is `beta`.
        options: `scale_rewards`, `multi_objective_aggregation`, `kl_in_reward`, `beta`, and what
            leaves answers out.
    """
    from penchant.methods.advantages import group_means, group_stds
    from penchant.methods.experience import Advantages

    separate = options.multi_objective_aggregation == "normalize_then_sum"
    scores = _normalised_sum(experience, options) if separate else experience.scores
    kept, metrics = kept_answers(experience, scores, options)
    if options.kl_in_reward and options.beta:
        assert experience.ref_logprobs is not None
        divergence = experience.sums(experience.logprobs - experience.ref_logprobs)
        scores = scores - options.beta * divergence
    if separate:
        advantages = (scores - scores.mean()) / (_deviation(scores) + 1e-4)
        return Advantages(advantages[experience.index], kept=kept, metrics=metrics)
    advantages = scores - group_means(scores, experience.group)
    if options.scale_rewards == "group":
        advantages = advantages / (group_stds(scores, experience.group) + 1e-4)
    elif options.scale_rewards == "batch" and len(scores) > 1:
        advantages = advantages / (_deviation(scores) + 1e-4)
    return Advantages(advantages[experience.index], kept=kept, metrics=metrics)


def _normalised_sum(experience: Experience, options: GRPOOptions) -> Tensor:
    """`[B]`: the weighted sum of rewards that were each normalised within their group.

    GDPO (Liu et al. 2026, https://arxiv.org/abs/2601.05242), so that a reward of small deviation
    is not drowned by one of large deviation. Penalties enter as large as they were set.
    """
    from penchant.methods.advantages import group_means, group_stds

    assert experience.by_reward is not None
    rewards = experience.by_reward.unbind(1)
    weights = options.reward_weights or (1.0,) * len(rewards)
    total = experience.scores.new_zeros(len(experience.scores))
    if experience.penalties is not None:
        total = total + experience.penalties
    for weight, values in zip(weights, rewards, strict=True):
        centred = values - group_means(values, experience.group)
        total = total + weight * centred / (group_stds(values, experience.group) + 1e-4)
    return total


def _deviation(scores: Tensor) -> Tensor:
    """The unbiased deviation of `[B]`; 0 of a single one."""
    return scores.std() if len(scores) > 1 else scores.new_zeros(())


def grpo_loss(inputs: RolloutInputs, options: GRPOOptions) -> LossOutput:
    """Clipped surrogate with the divergence in the loss, [B].

    Args:
        inputs: advantages equal over each answer's tokens.
        options: `loss_type`, `epsilon`, `epsilon_high`, `beta`, `use_bias_correction_kl`,
            `importance_sampling_level`, `entropy_coef`.

    Source:
        Shao et al. 2024, Eq. 3, with Schulman's k3 estimate of the divergence; token means as in
        DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476, Eq. 8), ratios of answers as in
        GSPO (Zheng et al. 2025, https://arxiv.org/abs/2507.18071, Eq. 5 and 7); the divergence
        weighted as in DeepSeek-V3.2 (https://arxiv.org/abs/2512.02556). CISPO: MiniMax 2025
        (https://arxiv.org/abs/2506.13585), Eq. 4 and 5, without its lower bound; TRL 1.16 takes
        `epsilon_high` there for the bound itself, here it is 1 + `epsilon_high` as elsewhere.
    """
    log_ratio = inputs.logprobs - inputs.old_logprobs
    if options.importance_sampling_level == "sequence":
        log_ratio = inputs.means(log_ratio)[inputs.index]
    ratio = ratio_of(log_ratio)
    if options.loss_type == "cispo":
        surrogate, bites = _weighted(inputs, ratio, options.clip[1])
    else:
        surrogate, bites = clipped(ratio, inputs.advantages, *options.clip)
    metrics = policy_metrics(inputs, inputs.token_means(bites))
    each = surrogate
    if options.beta and not options.kl_in_reward:
        assert inputs.ref_logprobs is not None
        # Bounded in both terms: the linear one alone would push away from the reference.
        behind = (inputs.ref_logprobs - inputs.logprobs).clamp(max=LARGEST_LOG_RATIO)
        divergence = behind.exp() - behind - 1
        if options.use_bias_correction_kl:
            # Without it the mean gradient is that of KL(reference || policy).
            divergence = divergence * ratio
        each = each + options.beta * divergence
        metrics["loss/kl"] = inputs.token_means(divergence.detach())
    loss = _reduced(inputs, each, options)
    if options.entropy_coef:
        loss = loss - options.entropy_coef * inputs.token_means(inputs.entropy)
    metrics["loss/policy"] = _reduced(inputs, surrogate.detach(), options)
    return LossOutput(loss, metrics)


def _weighted(inputs: RolloutInputs, ratio: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The policy gradient under a bounded weight, and whether the bound bites, `[N]` each."""
    weight = ratio.detach().clamp(max=bound)
    return -weight * inputs.advantages * inputs.logprobs, (ratio.detach() > bound).to(ratio.dtype)


def _reduced(inputs: RolloutInputs, each: Tensor, options: GRPOOptions) -> Tensor:
    if options.loss_type == "grpo":
        return inputs.means(each)
    if options.loss_type == "dr_grpo":
        return inputs.sums(each) / options.max_completion_length
    return inputs.token_means(each)


GRPO = group_method(
    name="grpo",
    title="Group Relative Policy Optimization",
    options=GRPOOptions,
    loss=grpo_loss,
    advantages=grpo_advantages,
    facts=group_facts(
        when="rewards that can be checked, such as exact answers",
        paper="https://arxiv.org/abs/2402.03300",
        beta="0 to 0.04",
        beta_range=(0.0, 0.2),
    ),
)
