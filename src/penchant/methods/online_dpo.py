"""Online DPO (Guo et al. 2024, https://arxiv.org/abs/2402.04792).

The policy answers each prompt several times, a reward ranks the answers, and the best and the worst
of them are the pair that a loss of DPO's family learns from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator
from typing_extensions import Self

from penchant.methods.base import Facts, LossOutput, Method, Needs, PairInputs
from penchant.methods.experience import RolloutInputs
from penchant.methods.online import OnlineOptions, policy_metrics
from penchant.methods.sums import SumOptions, summed_loss, summed_needs

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.experience import Advantages, Experience


class OnlineDPOOptions(SumOptions, OnlineOptions):
    """Options of online DPO."""

    num_generations: int = Field(
        2, ge=2, description="Answers to each prompt, of which the best and the worst are paired."
    )
    num_iterations: int = Field(1, ge=1, description="Training passes over each batch of answers.")

    @model_validator(mode="after")
    def _pairs_can_be_made(self) -> Self:
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of num_generations "
                f"({self.num_generations}): answers are compared within a prompt"
            )
        if self.entropy_coef:
            raise ValueError("online_dpo has no entropy bonus; drop entropy_coef")
        if self.importance_sampling in ("token", "sequence"):
            raise ValueError(
                "online_dpo learns from pairs whoever answered, without importance weights; drop "
                "importance_sampling"
            )
        for term in self.terms:
            needs = term.method.needs(term.options)
            if needs.whole_batch or needs.prompt or needs.weights or needs.tail_weight != 1.0:
                raise ValueError(
                    f"losses: {term.method.name} with these options needs more of a pair than "
                    "sampled answers have (the whole batch, the prompt's log-probs, or weights of "
                    "tokens); take dpo, ipo, simpo, cpo or another of the family"
                )
        return self

    @property
    def generations(self) -> int:
        return self.num_generations

    @property
    def trained_generations(self) -> int:
        """The best and the worst."""
        return 2

    @property
    def importance_level(self) -> None:
        """No weights: a pair is learned from whoever answered."""

    @property
    def epochs(self) -> int:
        return self.num_iterations


def online_dpo_pairs(
    experience: Experience, kl_coef: float, options: OnlineDPOOptions
) -> Advantages:
    """1 for the best answer to each prompt, -1 for the worst, and none of the others is kept.

    Args:
        experience: of whole groups; the first of equally good answers is the best, and the
            first of equally bad ones the worst.
        kl_coef: not read: the loss holds the divergence.
        options: not read.

    Returns:
        Advantages with metrics; a prompt whose answers all got one reward gives no pair.
    """
    from penchant.methods.advantages import group_stds
    from penchant.methods.experience import Advantages

    scores, group = experience.scores, experience.group
    sign = scores.new_zeros(len(scores))
    varied = group_stds(scores, group) > 1e-8
    numbers = group.unique().tolist()
    gaps = []
    for number in numbers:
        members = (group == number).nonzero().flatten()
        if not varied[members[0]]:
            continue
        best, worst = members[scores[members].argmax()], members[scores[members].argmin()]
        sign[best], sign[worst] = 1.0, -1.0
        gaps.append(float(scores[best] - scores[worst]))
    metrics = {"reward/zero_variance": 1 - len(gaps) / len(numbers)}
    if gaps:
        metrics["reward/gap"] = sum(gaps) / len(gaps)
    return Advantages(sign[experience.index], kept=sign != 0, metrics=metrics)


def online_dpo_loss(inputs: RolloutInputs, options: OnlineDPOOptions) -> LossOutput:
    """The sum of `losses` on pairs of sampled answers.

    Args:
        inputs: the two answers of a pair after each other, one of advantage 1 and one of -1.
        options: `losses`, `beta`, `loss_options`.

    Returns:
        Losses and metrics, [B]: each answer has those of its pair, so that a mean over answers is
        a mean over pairs.

    References:
        Guo et al. 2024, section 3; the reference's log-probs are those of the time of sampling.
    """
    pairs = _pairs(inputs)
    output = summed_loss(pairs, options)
    metrics = policy_metrics(inputs, inputs.lengths.new_zeros(len(inputs.lengths)).float())
    of_pairs = {name: values.repeat_interleave(2) for name, values in output.metrics.items()}
    return LossOutput(output.per_example.repeat_interleave(2), metrics | of_pairs)


def _pairs(inputs: RolloutInputs) -> PairInputs:
    first_is_better = inputs.means(inputs.advantages).view(-1, 2)[:, 0] > 0

    def split(values: Tensor) -> tuple[Tensor, Tensor]:
        first, second = values.view(-1, 2).unbind(1)
        chosen = first.where(first_is_better, second)
        return chosen, second.where(first_is_better, first)

    reference: tuple[Tensor | None, Tensor | None] = (None, None)
    if inputs.ref_logprobs is not None:
        reference = split(inputs.sums(inputs.ref_logprobs))
    return PairInputs(
        *split(inputs.sums(inputs.logprobs)),
        *reference,
        *split(inputs.lengths),
        mean_chosen_len=inputs.mean_good_len,
    )


def online_dpo_needs(options: OnlineDPOOptions) -> Needs:
    """A reference where one of the losses reads it, and both answers of a pair in one pass."""
    return Needs(reference=summed_needs(options).reference, partners=True)


ONLINE_DPO = Method(
    name="online_dpo",
    title="Online DPO",
    data="prompts",
    needs_reference=True,
    options=OnlineDPOOptions,
    loss=online_dpo_loss,
    advantages=online_dpo_pairs,
    needs=online_dpo_needs,
    facts=Facts(
        data="prompts and a reward (a model or a function)",
        models_in_memory="3 (policy, reference, reward); with LoRA 1 backbone",
        stability="steadier than PPO; no value head to fit",
        when="a reward or a judge ranks answers well, but its scores have no scale",
        paper="https://arxiv.org/abs/2402.04792",
        learning_rate=5e-7,
        learning_rate_lora=1e-5,
        learning_rate_range=(1e-7, 5e-6),
        beta="0.1 usual",
        beta_range=(0.01, 0.5),
    ),
)
