"""The contract of a method: facts, options, and a pure loss over per-example tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.core.findings import Finding
    from penchant.methods.experience import Advantages, Experience


class MethodOptions(BaseModel):
    """Options that only one method reads; each is a flat key of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def supervised_key(self) -> str:
        """The key that adds a supervised term; empty where a method has none."""
        return "rpo_alpha" if "rpo_alpha" in type(self).model_fields else ""

    def reported_beta(self, method: Method) -> float | None:
        """What the reported rewards are multiples of, in log-ratios; None of other rewards."""
        return getattr(self, "beta", None) if method.needs_reference else None

    def with_beta(self, beta: float) -> Self:
        """The same options with another `beta`, of a method that has one."""
        return self.model_copy(update={"beta": beta})


@dataclass(frozen=True)
class PairInputs:
    """Sums of log-probabilities over completion tokens, in nats; every tensor is [pairs].

    Attributes:
        chosen, rejected: under the policy, differentiable.
        ref_chosen, ref_rejected: under the reference; None for methods without one.
        chosen_len, rejected_len: tokens of each completion.
        chosen_nll: minus the log-probability of the chosen completion; it differs from `-chosen`
            only where `Needs.tail_weight` weights tokens. Differentiable; default `-chosen`.
        prompt: log-probability of the prompt's tokens after its first, differentiable; and
            prompt_len: how many those are. Only where `Needs.prompt` asks for them.
        chosen_weight, rejected_weight: how probable the policy finds a completion beside what it
            would say itself (WPO), without gradient. Only where `Needs.weights` asks for them.
        mean_chosen_len, mean_prompt_len: means over the whole global batch, so that averages
            over its tokens do not depend on how it is divided; default: over this batch.
        batch: the whole global batch, without gradient, where `Needs.whole_batch` asks for it.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None
    chosen_len: Tensor
    rejected_len: Tensor
    chosen_nll: Tensor | None = None
    prompt: Tensor | None = None
    prompt_len: Tensor | None = None
    chosen_weight: Tensor | None = None
    rejected_weight: Tensor | None = None
    mean_chosen_len: float | None = None
    mean_prompt_len: float | None = None
    batch: PairInputs | None = None

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """log policy / reference of the chosen and of the rejected completions, [pairs] each."""
        assert self.ref_chosen is not None and self.ref_rejected is not None
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    def nll(self, *, with_prompt: bool = False) -> Tensor:
        """Negative log-likelihood of the chosen text, per token of the global batch, [pairs].

        Its mean over the global batch is the mean over all its tokens, as in supervised training.

        Args:
            with_prompt: count the prompt's tokens (all but the first, which nothing predicts).
        """
        total = -self.chosen if self.chosen_nll is None else self.chosen_nll
        tokens = self.mean_chosen_len or float(self.chosen_len.cpu().double().mean())
        if with_prompt:
            assert self.prompt is not None and self.prompt_len is not None
            total = total - self.prompt
            tokens += self.mean_prompt_len or float(self.prompt_len.cpu().double().mean())
        return total / tokens


class LossOutput(NamedTuple):
    """What a loss returns: nothing in it is reduced."""

    per_example: Tensor
    """[examples], differentiable."""
    metrics: dict[str, Tensor]
    """Detached, [examples] each, NaN where a metric says nothing of an example; the engine
    averages the rest over the global batch."""


@dataclass(frozen=True)
class Needs:
    """What a loss wants beside summed log-probabilities. Each costs something.

    Attributes:
        whole_batch: the others of its global batch (`PairInputs.batch`); with several
            micro-batches a step, that is one more forward pass without gradient.
        mismatches: `LabelInputs.kl`, from completions after other prompts.
        prompt: log-probabilities of the prompt's own tokens.
        weights: `chosen_weight` and `rejected_weight`.
        margins: `ScoreInputs.margin`: every record must state one.
        tail_weight: of the tokens by which a completion is longer than its partner (LD-DPO).
        values: a value head.
        full_kl: the exact divergence from the reference at every sampled token.
        entropy_gradient: entropies that can be trained.
        partners: the two answers of a pair in one micro-batch, after each other.
        reference: a reference at all; without it, one that is at hand still tells the divergence.
        divergence: how far the policy's distribution is from a teacher's at every sampled token,
            differentiable: the generalised Jensen-Shannon divergence of this weight of the teacher
            in the mixture (0: KL(teacher || policy), 1: KL(policy || teacher)). None: no teacher.
        scored: a pass without gradient over sampled answers before they are trained on; without
            it, the sampler's own log-probs are those of the answers.
    """

    whole_batch: bool = False
    mismatches: bool = False
    prompt: bool = False
    weights: bool = False
    margins: bool = False
    tail_weight: float = 1.0
    values: bool = False
    full_kl: bool = False
    entropy_gradient: bool = False
    partners: bool = False
    reference: bool = True
    divergence: float | None = None
    scored: bool = True


@dataclass(frozen=True)
class Facts:
    """What one has to know to choose a method, and what the checks hold a run against."""

    data: str
    models_in_memory: str
    stability: str
    when: str
    paper: str
    learning_rate: float
    """Default for training all weights."""
    learning_rate_lora: float
    """Default for LoRA, whose updates are scaled and low-rank: about ten times higher."""
    learning_rate_range: tuple[float, float]
    """Sane values for all weights."""
    beta: str = ""
    """Typical values of `beta`, where the method has one."""
    beta_range: tuple[float, float] | None = None
    """Sane values of `beta`."""
    num_train_epochs: float = 1.0
    """Default number of passes over the data."""


@dataclass(frozen=True)
class Method:
    """One entry of `METHODS`.

    Attributes:
        data: the records it reads; with `prompts` it samples the answers itself.
        model: `language` trains log-probabilities, `score` a scalar head.
        needs_reference: whether a reference is loaded at all.
        loss: (inputs, options) to `LossOutput`.
        needs: what else the inputs must hold under some options.
        warnings: (tokenised training examples, options) to findings of its own before a run.
        advantages: methods that sample: (experience, KL coefficient, options) to an estimate.
        veto: (mean metrics of a step, options) to whether its gradient is thrown away.
    """

    name: str
    title: str
    data: Literal["pairs", "labels", "prompts"]
    needs_reference: bool
    options: type[MethodOptions]
    loss: Callable[[Any, Any], LossOutput]
    facts: Facts
    model: Literal["language", "score"] = "language"
    needs: Callable[[Any], Needs] = lambda _: Needs()
    warnings: Callable[[Sequence[Any], Any], list[Finding]] = lambda _, __: []
    advantages: Callable[[Experience, float, Any], Advantages] | None = None
    veto: Callable[[Mapping[str, float], Any], bool] = lambda _, __: False

    @property
    def samples(self) -> bool:
        """Whether the method samples its own answers."""
        return self.data == "prompts"

    @property
    def defaults(self) -> Any:
        """Its options where nothing is set but what has no default, such as a reward."""
        required = (k for k, field in self.options.model_fields.items() if field.is_required())
        return self.options(**{name: name.upper() for name in required})


def pair_metrics(
    inputs: PairInputs, chosen_reward: Tensor, rejected_reward: Tensor
) -> dict[str, Tensor]:
    """The metrics every pairwise method reports, from its own implicit rewards, [pairs] each."""
    margin = chosen_reward - rejected_reward
    return {
        "reward/chosen": chosen_reward.detach(),
        "reward/rejected": rejected_reward.detach(),
        "reward/margin": margin.detach(),
        "reward/accuracy": accuracy(margin),
        "logprob/chosen": inputs.chosen.detach(),
        "logprob/rejected": inputs.rejected.detach(),
    }


def accuracy(margin: Tensor) -> Tensor:
    """1 where the margin is positive, one half where it is exactly 0, as before any training."""
    return (margin.detach().sign() + 1) / 2


def smoothed(loss: Callable[[Tensor], Tensor], margin: Tensor, share: float) -> Tensor:
    """Mean loss, [pairs], if a `share` of the margins has the wrong sign."""
    if share == 0:
        return loss(margin)
    return (1 - share) * loss(margin) + share * loss(-margin)
