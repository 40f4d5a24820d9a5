"""Held-out evaluation: does the model prefer what people preferred, and how far has it moved?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

# Nats an answer within which a reward counts: beyond, it is paid for with another model.
BOUNDED_KL = 10.0
METRICS = {
    "accuracy": "reward/accuracy",
    "margin": "reward/margin",
    "reward_chosen": "reward/chosen",
    "reward_rejected": "reward/rejected",
    "logprob_accuracy": "logprob/accuracy",
    "logprob_chosen": "logprob/chosen",
    "logprob_rejected": "logprob/rejected",
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "kl_sequence": "kl/sequence",
    "kl_sequence_error": "kl/sequence_error",
    "completion_length": "completion/length",
    "completion_ended": "completion/ended",
}


@dataclass(frozen=True)
class Evaluation:
    """Means over held-out records; log-probs and KL in nats.

    What a kind of model or data does not have is None.

    Attributes:
        num_examples: pairs, or labelled completions.
        loss: the method's.
        accuracy: share of preferences that the reward (implicit, or the reward model's) ranks
            right; equal counts half. Labelled completions are compared within a prompt, or where
            no prompt has both kinds, all with all.
        margin: reward of the chosen (desirable) minus that of the rejected.
        reward_chosen, reward_rejected: means.
        logprob_accuracy: share of preferences whose chosen completion is likelier, without a
            reference.
        logprob_chosen, logprob_rejected: summed over a completion.
        kl: exact KL(policy || reference) a token, at the data's positions; None where no
            reference model is in memory.
        entropy: of the policy, a token; None likewise.
        calibration_error: expected difference between the preference probability that a reward
            model states and the share of pairs it ranks right (10 bins).
        score_mean, score_std: of a reward model's scores.
        reward, reward_std: of answers that the policy sampled to held-out prompts, as the rewards
            give it, before normalising.
        kl_sequence: of answers that the policy sampled, from the reference, in nats per answer;
            kl_sequence_error: its standard error. Where answers are judged, `kl` is of them too.
        completion_length, completion_ended: their mean tokens, and the share that ended itself.
    """

    num_examples: int
    loss: float | None = None
    accuracy: float | None = None
    margin: float | None = None
    reward_chosen: float | None = None
    reward_rejected: float | None = None
    logprob_accuracy: float | None = None
    logprob_chosen: float | None = None
    logprob_rejected: float | None = None
    kl: float | None = None
    entropy: float | None = None
    calibration_error: float | None = None
    score_mean: float | None = None
    score_std: float | None = None
    reward: float | None = None
    reward_std: float | None = None
    kl_sequence: float | None = None
    kl_sequence_error: float | None = None
    completion_length: float | None = None
    completion_ended: float | None = None

    @property
    def quality(self) -> tuple[str, float, float]:
        """What a model is chosen by: its name, value and standard error."""
        if self.accuracy is not None:
            variance = self.accuracy * (1 - self.accuracy)
            return "accuracy", self.accuracy, math.sqrt(max(variance, 0.0) / self.num_examples)
        if self.reward is None:
            return ("reward", -math.inf, 0.0) if self.loss is None else ("loss", -self.loss, 0.0)
        return "reward", self.reward, (self.reward_std or 0.0) / math.sqrt(self.num_examples)

    @property
    def rank(self) -> tuple[float, float]:
        """The larger the better: the quality, then the margin; a drifted policy comes last."""
        if self.accuracy is None and (self.kl_sequence or 0.0) > BOUNDED_KL:
            return -math.inf, -(self.kl_sequence or 0.0)
        return self.quality[1], self.margin or 0.0

    @property
    def rule(self) -> str:
        """How `rank` chooses, in words."""
        if self.accuracy is not None:
            return "held-out accuracy, then margin"
        if self.reward is None and self.loss is not None:
            return "held-out loss"
        return f"reward of held-out prompts at a KL of at most {BOUNDED_KL:g} nats per answer"

    def metrics(self) -> dict[str, float]:
        """By the metric names used everywhere; what is None is left out."""
        return {METRICS.get(k, k): v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_metrics(cls, metrics: dict[str, float]) -> Evaluation:
        """The inverse of `metrics`; other metrics are passed over."""
        names = {field.name: METRICS.get(field.name, field.name) for field in fields(cls)}
        return cls(**{name: metrics.get(metric) for name, metric in names.items()})  # type: ignore[arg-type]
