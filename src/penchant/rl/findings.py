"""What a batch of answers says about a run: causes of failure, with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from penchant.core.findings import Finding, warning

if TYPE_CHECKING:
    from penchant.rl.rollout import Judged

# Standard errors below 0 at which a mean divergence is no accident.
SURELY_NEGATIVE = 3.0
# Nats a token by which sampling and scoring may differ, rounding included.
SAMPLING_DIFFERENCE = 0.05
# Share of importance weights beyond the cap from which on much of a batch is lost.
TRUNCATED = 0.1
# Deviations of an unnormalised reward beyond which penalties and value losses lose their scale.
LARGE_DEVIATION = 5.0


def look_at(judged: Judged, metrics: Mapping[str, float]) -> Iterator[Finding]:
    """Findings of one batch.

    Args:
        judged: the answers.
        metrics: of the batch, estimates included.
    """
    if judged.scores.dropped:
        yield warning(
            "reward-dropped",
            f"{judged.scores.dropped} answers of this batch had no reward and were dropped",
            "correct the reward for such answers; on_reward_error raise names the first of them",
            {"dropped": judged.scores.dropped},
        )
    if not judged.answers:
        return
    yield from _constant(metrics)
    yield from _endless(metrics)
    yield from _negative(metrics)
    yield from _mismatch(metrics)
    yield from _scale(metrics)


def nothing_left(batches: int, steps: int, flat: float) -> Finding:
    """Of answers that are not told apart, or all left out.

    Args:
        batches: in a row that left nothing to train on.
        steps: optimizer steps that were done before.
        flat: the share of the last batch's groups whose answers all got the same reward.
    """
    if flat < 1:
        why = "max_completion_length cut the answers off, and mask_truncated_completions leaves "
        why += "such answers out"
        remedy = "raise max_completion_length, or drop mask_truncated_completions"
    else:
        why = "the rewards within each group were all the same, or every answer was dropped"
        remedy = "where that is not the highest reward, use one that tells answers apart, harder "
        remedy += "or easier prompts, or a higher temperature"
    ended = f": the run ends after step {steps}, with what it has learned" if steps else ""
    return warning(
        "nothing-left-to-learn",
        f"{batches} batches of answers in a row gave nothing to learn from{ended}: {why} (see "
        "rollouts.jsonl)",
        remedy,
        {"batches": batches},
    )


def _constant(metrics: Mapping[str, float]) -> Iterator[Finding]:
    if metrics["rollouts"] > 1 and metrics.get("reward/std", 1.0) < 1e-8:
        worth = metrics.get("reward/mean")
        told = "were ties with one another" if worth is None else f"got the reward {worth:g}"
        yield warning(
            "reward-constant",
            f"all {metrics['rollouts']:.0f} answers of a batch {told}: there is nothing to learn "
            "from",
            "use a reward that tells answers apart, or other prompts",
            {} if worth is None else {"reward": worth},
        )


def _endless(metrics: Mapping[str, float]) -> Iterator[Finding]:
    if metrics["completion/ended"] == 0:
        yield warning(
            "never-ends",
            f"no answer of a batch ended by itself (mean length {metrics['completion/length']:.0f} "
            "tokens, all cut)",
            "raise max_completion_length, use an instruction-tuned model, or, where a reward is "
            "learned from, set missing_eos_penalty",
            {"length": metrics["completion/length"]},
        )


def _negative(metrics: Mapping[str, float]) -> Iterator[Finding]:
    error = metrics.get("kl/sequence_error")
    if error is not None and metrics["kl/sequence"] < -SURELY_NEGATIVE * error - 1e-3:
        yield Finding(
            "kl-negative",
            "error",
            f"the mean divergence from the reference is {metrics['kl/sequence']:.2f} nats an "
            f"answer (standard error {error:.2f}), which samples of the policy cannot give: the "
            "answers were not drawn from the distribution that scores them",
            "look for sampling with another temperature or filter than is scored, a forced or "
            "forbidden token (min_new_tokens, suppressed tokens), dropout, or an engine with old "
            "weights",
            {"kl": metrics["kl/sequence"], "error": error},
        )


def _mismatch(metrics: Mapping[str, float]) -> Iterator[Finding]:
    difference = metrics.get("logprob/sampling_difference", 0.0)
    truncated = metrics.get("sampling/truncated", 0.0)
    if difference > SAMPLING_DIFFERENCE or truncated > TRUNCATED:
        cut = f"; {truncated:.0%} of the importance weights are beyond the cap" if truncated else ""
        yield warning(
            "sampling-mismatch",
            f"log-probs while sampling and while scoring differ by {difference:.3f} nats per token "
            f"on average{cut}: the generation engine computes otherwise, or has old weights",
            "let the engine compute in the precision of the run (vllm_dtype, or the server's "
            "--dtype), or set generation to cached",
            {"difference": difference, "truncated": truncated},
        )


def _scale(metrics: Mapping[str, float]) -> Iterator[Finding]:
    # Other methods divide by a deviation or read the order alone, and have no value head.
    if "objective/non_score_reward" not in metrics:
        return
    if metrics.get("reward/normalized/std", 0.0) > LARGE_DEVIATION:
        penalty = abs(metrics["objective/non_score_reward"])
        yield warning(
            "reward-scale",
            f"rewards enter with a deviation of {metrics['reward/normalized/std']:.3g}, beside "
            f"which the divergence penalty ({penalty:.3g}) hardly counts and value clipping holds "
            "the value head back",
            "set reward_normalization to auto, or score_clip",
            {"std": metrics["reward/normalized/std"]},
        )


def other_engine(before: str, now: str) -> Finding:
    """That another engine answers than the one that an interrupted run began with."""
    return warning(
        "other-engine",
        f"answers are drawn by {now} from here on, and {before} drew them before: generation auto "
        "takes what the device, the installed packages and the number of processes allow, and "
        "other engines draw other answers",
        "go on where the run began, with as many processes; in a new run set generation to the "
        "engine that you want",
        {"before": before, "now": now},
    )
