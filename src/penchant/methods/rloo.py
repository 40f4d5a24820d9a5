"""REINFORCE leave-one-out (Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from penchant.methods.base import LossOutput
from penchant.methods.experience import RolloutInputs
from penchant.methods.grouped import GroupOptions, group_facts, group_method, kept_answers
from penchant.methods.online import clipped, policy_metrics, ratio_of

if TYPE_CHECKING:
    from penchant.methods.experience import Advantages, Experience


class RLOOOptions(GroupOptions):
    """Options of RLOO."""

    num_generations: int = Field(4, ge=2, description="Answers to each prompt, which are compared.")
    beta: float = Field(0.05, ge=0, description="Weight of the divergence, charged to the reward.")
    normalize_advantages: bool = Field(
        False, description="Advantages of the batch to mean 0 and deviation 1."
    )


def rloo_advantages(experience: Experience, kl_coef: float, options: RLOOOptions) -> Advantages:
    """Reward, less the divergence from the reference, minus the mean of the group's others.

    Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740), Eq. 7.

    Args:
        experience: of whole groups.
        kl_coef: not read: RLOO's weight is `beta`.
        options: `beta`, `normalize_advantages`, and what leaves answers out.
    """
    from penchant.methods.advantages import leave_one_out
    from penchant.methods.experience import Advantages

    kept, metrics = kept_answers(experience, experience.scores, options)
    scores = experience.scores
    if options.beta:
        assert experience.ref_logprobs is not None
        divergence = experience.sums(experience.logprobs - experience.ref_logprobs)
        scores = scores - options.beta * divergence
    advantages = leave_one_out(scores, experience.group)
    if options.normalize_advantages and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    return Advantages(advantages[experience.index], kept=kept, metrics=metrics)


def rloo_loss(inputs: RolloutInputs, options: RLOOOptions) -> LossOutput:
    """Clipped surrogate on whole answers, [B].

    Args:
        inputs: advantages equal over each answer's tokens.
        options: `epsilon`, `epsilon_high`, `entropy_coef`.

    Source:
        Ahmadian et al. 2024, with the ratio of whole answers clipped as TRL 1.16 does; with one
        pass over each batch that is their gradient.
    """
    log_ratio = inputs.sums(inputs.logprobs - inputs.old_logprobs)
    advantages = inputs.means(inputs.advantages)
    loss, bites = clipped(ratio_of(log_ratio), advantages, *options.clip)
    metrics = policy_metrics(inputs, bites)
    metrics["loss/policy"] = loss.detach()
    if options.entropy_coef:
        loss = loss - options.entropy_coef * inputs.token_means(inputs.entropy)
    return LossOutput(loss, metrics)


RLOO = group_method(
    name="rloo",
    title="REINFORCE leave-one-out",
    options=RLOOOptions,
    loss=rloo_loss,
    advantages=rloo_advantages,
    facts=group_facts(
        when="PPO's reward without its value head",
        paper="https://arxiv.org/abs/2402.14740",
        beta="0.03 to 0.1",
        beta_range=(0.0, 0.3),
    ),
)
