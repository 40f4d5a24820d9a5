"""On-policy distillation (Agarwal et al. 2023, https://arxiv.org/abs/2306.13649).

The policy answers prompts itself, and learns at every token of its answers what a teacher would
have said there: the whole distribution, not the token that was sampled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from penchant.methods.base import Facts, LossOutput, Method, Needs
from penchant.methods.online import OnlineOptions, policy_metrics

if TYPE_CHECKING:
    from penchant.methods.experience import Advantages, Experience, RolloutInputs


class DistillOptions(OnlineOptions):
    """Options of on-policy distillation."""

    learns_from_reward: ClassVar[bool] = False

    reward: tuple[str, ...] = Field(
        (), description="What judges answers beside the teacher, for the metrics alone; repeat for "
        "several. Default: nothing."
    )  # fmt: skip
    teacher_model: str = Field(
        description="The model whose distributions are learned: a folder, run or hub id. Its "
        "tokenizer must be that of the model."
    )
    beta: float = Field(
        1.0, ge=0, le=1, description="Which divergence: 0 is KL(teacher || policy), 1 is "
        "KL(policy || teacher), and between them the generalised Jensen-Shannon divergence."
    )  # fmt: skip
    num_iterations: int = Field(1, ge=1, description="Training passes over each batch of answers.")

    @model_validator(mode="after")
    def _only_the_teacher_is_learned_from(self) -> Self:
        if self.entropy_coef:
            raise ValueError("distill has no entropy bonus; drop entropy_coef")
        if self.importance_sampling in ("token", "sequence"):
            raise ValueError(
                "distill compares whole distributions, whoever answered, without importance "
                "weights; drop importance_sampling"
            )
        return self

    @property
    def importance_level(self) -> None:
        """No weights: the divergence is taken at whatever was answered."""

    @property
    def epochs(self) -> int:
        return self.num_iterations


def every_answer(experience: Experience, kl_coef: float, options: DistillOptions) -> Advantages:
    """Advantages of 0: every answer is worth a pass, and none is compared with another.

    Args:
        experience: of any answers.
        kl_coef, options: not read.
    """
    from penchant.methods.experience import Advantages

    return Advantages(experience.logprobs.new_zeros(len(experience.logprobs)))


def distill_loss(inputs: RolloutInputs, options: DistillOptions) -> LossOutput:
    """The divergence from the teacher, a mean over the tokens of the global batch, [B].

    Args:
        inputs: with `divergence`, which has the gradient.
        options: `top_k`, `top_p`: with a filter nothing is compared with what sampling said.
            `beta` is not read: the inputs hold the divergence.

    References:
        Agarwal et al. 2023, section 3, whose gradient does not go through the sampling either.
        Of sums over the vocabulary, means over tokens: TRL 1.16's `generalized_jsd_loss`.
    """
    assert inputs.divergence is not None and inputs.teacher_kl is not None
    loss = inputs.token_means(inputs.divergence)
    metrics = policy_metrics(inputs, inputs.lengths.new_zeros(len(inputs.lengths)).float())
    if options.top_k or options.top_p < 1:
        # The sampler's log-probs are those of what the filters left, and these are of all tokens.
        metrics = {"policy/entropy": metrics["policy/entropy"]}
    metrics["divergence"] = loss.detach()
    metrics["kl/teacher"] = inputs.token_means(inputs.teacher_kl)
    return LossOutput(loss, metrics)


DISTILL = Method(
    name="distill",
    title="On-policy distillation",
    data="prompts",
    needs_reference=False,
    options=DistillOptions,
    loss=distill_loss,
    advantages=every_answer,
    needs=lambda options: Needs(divergence=options.beta, scored=False, reference=False),
    facts=Facts(
        data="prompts and a teacher (a model of the same tokenizer)",
        models_in_memory="2 (policy and teacher); 1 backbone if the teacher is an adapter of it",
        stability="as steady as supervised learning",
        when="a larger or better model has the same tokenizer: it says more of each token than "
        "a reward says of an answer",
        paper="https://arxiv.org/abs/2306.13649",
        learning_rate=1e-6,
        learning_rate_lora=1e-4,
        learning_rate_range=(1e-7, 2e-5),
        beta="1 usual; 0 and 0.5 cover more of what the teacher may say",
        beta_range=(0.0, 1.0),
    ),
)
