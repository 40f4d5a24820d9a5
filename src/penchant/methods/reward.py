"""Reward models from pairs (Bradley-Terry; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155)."""

from __future__ import annotations

from pydantic import Field

from penchant.methods.base import Facts, LossOutput, Method, MethodOptions, Needs, accuracy
from penchant.methods.inputs import ScoreInputs


class RewardOptions(MethodOptions):
    """Options of reward models."""

    center_rewards_coefficient: float | None = Field(
        None, gt=0, description="Pulls the scores of a pair towards a sum of 0: 0.01 where wanted."
    )
    use_margins: bool = Field(
        False, description="Ask for the `margin` that every record then states between the scores."
    )
    ensemble: int | None = Field(
        None, ge=2, description="Train so many members with different seeds and data orders."
    )


def reward_loss(inputs: ScoreInputs, options: RewardOptions) -> LossOutput:
    """Bradley-Terry loss on pairs of scores.

    Args:
        inputs: scores, [pairs]; `margin` is required, and read, with `use_margins` only.
        options: `center_rewards_coefficient`, `use_margins`.

    Returns:
        Losses and metrics, [pairs]. Rewards are the scores.

    References:
        Eq. 1 of Ouyang et al. 2022; margins are Eq. 2 of Touvron et al. 2023
        (https://arxiv.org/abs/2307.09288), centring is Eq. 2 of Eisenstein et al. 2023
        (https://arxiv.org/abs/2312.09244).
    """
    from torch.nn.functional import logsigmoid

    difference = inputs.chosen - inputs.rejected
    wanted = difference
    if options.use_margins:
        assert inputs.margin is not None
        wanted = difference - inputs.margin
    loss = -logsigmoid(wanted)
    if options.center_rewards_coefficient is not None:
        loss = loss + options.center_rewards_coefficient * (inputs.chosen + inputs.rejected) ** 2
    metrics = {
        "reward/chosen": inputs.chosen.detach(),
        "reward/rejected": inputs.rejected.detach(),
        "reward/margin": difference.detach(),
        "reward/accuracy": accuracy(difference),
    }
    return LossOutput(loss, metrics)


REWARD = Method(
    name="reward",
    title="Reward model",
    data="pairs",
    model="score",
    needs_reference=False,
    options=RewardOptions,
    loss=reward_loss,
    needs=lambda options: Needs(margins=options.use_margins),
    facts=Facts(
        data="pairwise preferences",
        models_in_memory="1 (a scalar head)",
        stability="over-fits beyond one epoch",
        when="a reward for PPO, best-of-n, or for judging answers",
        paper="https://arxiv.org/abs/2203.02155",
        learning_rate=1.5e-5,
        learning_rate_lora=3e-4,
        learning_rate_range=(1e-6, 5e-5),
    ),
)
