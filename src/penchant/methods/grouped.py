"""What methods that compare the answers of one prompt have in common."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, model_validator
from typing_extensions import Self

from penchant.methods.base import Facts, Method, Needs
from penchant.methods.online import OnlineOptions

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.experience import Experience


class GroupOptions(OnlineOptions):
    """Of methods that compare the answers of one prompt."""

    num_generations: int = Field(8, ge=2, description="Answers to each prompt, which are compared.")
    num_iterations: int = Field(1, ge=1, description="Training passes over each batch of answers.")
    epsilon: float = Field(0.2, gt=0, description="The ratio is clipped below 1 - epsilon.")
    epsilon_high: float | None = Field(
        None, gt=0, description="And above 1 + epsilon_high (DAPO's clip-higher); default epsilon."
    )
    skip_zero_variance: bool = Field(
        True,
        description="Leave out groups whose answers all got the same reward; they are counted.",
    )
    dynamic_sampling: bool = Field(
        False, description="Answer further prompts in place of those whose answers all got the "
        "same reward, until the batch is full (DAPO)."
    )  # fmt: skip
    dynamic_sampling_max_gen_batches: int = Field(
        10, ge=2, description="How often prompts are answered for one batch at most; then it is "
        "trained on as it is."
    )  # fmt: skip
    mask_truncated_completions: bool = Field(
        False, description="Do not train on answers that max_completion_length cut off; they still "
        "count in the comparison of their group."
    )  # fmt: skip

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of num_generations "
                f"({self.num_generations}): answers are compared within a prompt"
            )
        return self

    @model_validator(mode="after")
    def _flat_groups_are_replaced(self) -> Self:
        if self.dynamic_sampling and not self.skip_zero_variance:
            raise ValueError(
                "dynamic_sampling replaces the groups that skip_zero_variance leaves out; set it "
                "to true, or drop dynamic_sampling"
            )
        default = type(self).model_fields["dynamic_sampling_max_gen_batches"].default
        if not self.dynamic_sampling and self.dynamic_sampling_max_gen_batches != default:
            raise ValueError("dynamic_sampling_max_gen_batches is read with dynamic_sampling: true")
        return self

    @property
    def max_gen_batches(self) -> int:
        return self.dynamic_sampling_max_gen_batches if self.dynamic_sampling else 1

    @property
    def generations(self) -> int:
        return self.num_generations

    @property
    def epochs(self) -> int:
        return self.num_iterations

    @property
    def clip(self) -> tuple[float, float]:
        """Smallest and largest ratio."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return 1 - self.epsilon, 1 + high


def kept_answers(
    experience: Experience, scores: Tensor, options: GroupOptions
) -> tuple[Tensor | None, dict[str, float]]:
    """Answers that are worth a training pass, `[B]` bool, and what was left out.

    Args:
        experience: of whole groups.
        scores: `[B]`, what the answers of a group are compared by.
        options: `skip_zero_variance`, `mask_truncated_completions` (DAPO's overlong filtering,
            Yu et al. 2025, https://arxiv.org/abs/2503.14476, 3.4).

    Returns:
        None in place of the first where all are kept; the share of groups without variance.
    """
    from penchant.methods.advantages import group_stds

    varied = group_stds(scores, experience.group) > 1e-8
    flat = {int(g) for g in experience.group[~varied]}
    metrics = {"reward/zero_variance": len(flat) / len(set(experience.group.tolist()))}
    kept = varied if options.skip_zero_variance else None
    if options.mask_truncated_completions:
        assert experience.ended is not None
        kept = experience.ended if kept is None else kept & experience.ended
    return kept, metrics


group_method = partial(
    Method,
    data="prompts",
    needs_reference=True,
    needs=lambda chosen: Needs(entropy_gradient=chosen.entropy_coef > 0, reference=chosen.beta > 0),
)
group_facts = partial(
    Facts,
    data="prompts and a reward (a model or a function)",
    models_in_memory="3 (policy, reference, reward); with LoRA 1 backbone",
    stability="steadier than PPO; no value head to fit",
    learning_rate=1e-6,
    learning_rate_lora=1e-5,
    learning_rate_range=(1e-7, 1e-5),
)
