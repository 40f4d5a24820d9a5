"""Held-out evaluation: does the model prefer what people preferred, and how far has it moved?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from penchant.data.batch import Group
from penchant.methods import Method, MethodOptions, PairInputs
from penchant.methods.base import accuracy
from penchant.models.logprobs import compare_heads
from penchant.models.reference import Progress, Reference
from penchant.models.scoring import Scorer, ScoringPlan, completion_sums

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import TokenBatch
    from penchant.data.tokenise import TokenisedPair


METRICS = {
    "accuracy": "reward/accuracy",
    "margin": "reward/margin",
    "reward_chosen": "reward/chosen",
    "reward_rejected": "reward/rejected",
    "logprob_accuracy": "logprob/accuracy",
    "logprob_chosen": "logprob/chosen",
    "logprob_rejected": "logprob/rejected",
}


@dataclass(frozen=True)
class Evaluation:
    """Means over held-out pairs; log-probs and KL in nats.

    Attributes:
        num_pairs: how many.
        loss: the method's.
        accuracy: share of pairs whose implicit reward is higher for chosen; equal counts half.
        margin: chosen reward minus rejected reward.
        reward_chosen, reward_rejected: implicit rewards.
        logprob_accuracy: share of pairs whose chosen completion is likelier, without a reference.
        logprob_chosen, logprob_rejected: summed over a completion.
        kl: exact KL(policy || reference) a token, at the data's positions; None where no
            reference model is in memory.
        entropy: of the policy, a token; None likewise.
    """

    num_pairs: int
    loss: float
    accuracy: float
    margin: float
    reward_chosen: float
    reward_rejected: float
    logprob_accuracy: float
    logprob_chosen: float
    logprob_rejected: float
    kl: float | None
    entropy: float | None

    def metrics(self) -> dict[str, float]:
        """By the metric names used everywhere; what is None is left out."""
        return {METRICS.get(k, k): v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_metrics(cls, metrics: dict[str, float]) -> Evaluation:
        """The inverse of `metrics`; other metrics are passed over."""
        names = {field.name: METRICS.get(field.name, field.name) for field in fields(cls)}
        return cls(**{name: metrics.get(metric) for name, metric in names.items()})  # type: ignore[arg-type]


def score_pairs(
    model: Callable[[TokenBatch], Tensor],
    batch: TokenBatch,
    reference_sums: Tensor | None,
) -> PairInputs:
    """Policy log-probs of a batch of pairs, beside the reference's `[2 * pairs]`."""
    chosen, rejected = completion_sums(batch, model(batch)).view(-1, 2).unbind(1)
    chosen_len, rejected_len = batch.completion_lengths.view(-1, 2).unbind(1)
    if reference_sums is None:
        return PairInputs(chosen, rejected, None, None, chosen_len, rejected_len)
    ref_chosen, ref_rejected = reference_sums.view(-1, 2).unbind(1)
    return PairInputs(chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len)


@torch.no_grad()
def evaluate_pairs(
    scorer: Scorer,
    reference: Reference | None,
    examples: Sequence[TokenisedPair],
    method: Method,
    options: MethodOptions,
    *,
    batch_size: int,
    progress: Progress,
) -> Evaluation:
    """Evaluate the policy on held-out pairs.

    Args:
        scorer: the policy.
        reference: None for methods without one.
        examples: tokenised pairs, at least one.
        method, options: whose loss and implicit rewards are reported.
        batch_size: pairs a forward pass.
        progress: wraps the loop over batches.
    """
    was_training = scorer.training
    scorer.eval()
    totals: dict[str, float] = {}
    # Pairs of like length together: nothing changes but the time.
    ordered = sorted(examples, key=lambda e: e.group().num_tokens)
    for start in progress(range(0, len(ordered), batch_size), "evaluating"):
        groups = [example.group() for example in ordered[start : start + batch_size]]
        for name, value in _evaluate_batch(scorer, reference, groups, method, options).items():
            totals[name] = totals.get(name, 0.0) + value.sum().item()
    scorer.train(was_training)
    tokens = totals.pop("num_tokens")
    per_token = {name: totals.pop(name) / tokens for name in ("kl", "entropy") if name in totals}
    means = {name: total / len(ordered) for name, total in totals.items()}
    return Evaluation(
        num_pairs=len(ordered),
        loss=means["loss"],
        accuracy=means["reward/accuracy"],
        margin=means["reward/margin"],
        reward_chosen=means["reward/chosen"],
        reward_rejected=means["reward/rejected"],
        logprob_accuracy=means["logprob/accuracy"],
        logprob_chosen=means["logprob/chosen"],
        logprob_rejected=means["logprob/rejected"],
        kl=per_token.get("kl"),
        entropy=per_token.get("entropy"),
    )


def _evaluate_batch(
    scorer: Scorer,
    reference: Reference | None,
    groups: list[Group],
    method: Method,
    options: MethodOptions,
) -> dict[str, Tensor]:
    batch = scorer.batch(groups)
    extra: dict[str, Any] = {"num_tokens": batch.completion_lengths.sum()}
    logprobs, ref_sums = None, None
    if reference is not None:
        with reference.active() as other:
            exact = other is not None and _comparable(scorer.plan, other.plan)
            if other is not None and exact:
                their_head, their_transform = other.head_inputs(batch), other.transform
        if exact:
            both = compare_heads(
                scorer.head_inputs(batch),
                their_head,
                batch.targets,
                transform=scorer.transform,
                ref_transform=their_transform,
            )
            extra["kl"], extra["entropy"] = both.kl, both.entropy
            logprobs, ref_sums = both.logprobs, completion_sums(batch, both.ref_logprobs)
        else:
            ref_sums = reference.sums(groups, batch)
    known = scorer(batch) if logprobs is None else logprobs
    inputs = score_pairs(lambda _: known, batch, ref_sums)
    output = method.loss(inputs, options)
    likelier = accuracy(inputs.chosen - inputs.rejected)
    return {"loss": output.per_example, **output.metrics, "logprob/accuracy": likelier, **extra}


def _comparable(policy: ScoringPlan, reference: ScoringPlan) -> bool:
    """Whether both models' hidden states can stand behind one batch and one walk of the heads."""
    fused = policy.fused_head and reference.fused_head
    return fused and policy.packed == reference.packed
