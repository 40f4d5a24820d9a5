"""Detectors of how training itself goes: losses, gradients, held-out evaluations."""

from __future__ import annotations

import math
from statistics import median

from penchant.core.findings import Finding
from penchant.guards.monitors.history import History, RunFacts, Series

# Logged steps that are averaged where single batches say little.
WINDOW = 20
# Nats by which chosen answers may become less likely: what moving apart costs in sound runs too.
FALLEN_NATS = 10.0
# Standard errors that are no accident.
SURE = 2.0
# Accuracy lost since the best evaluation, and by how much the loss is above its least.
LOST_ACCURACY = 0.02
LOSS_ABOVE = 1.1
# Evaluations since the best one that must all be worse.
WORSE = 2
# Times its early median that a value loss has reached; rewards have deviation 1.
VALUE_TIMES, VALUE_LEAST = 10.0, 1.0
# Share of tokens: 0.1 to 0.3 is usual, above it most of the gradient is thrown away.
CLIPPED = 0.4
# A loss so many times the largest deviation usual of late, and above what it was at the start.
SPIKE_DEVIATIONS, SPIKE_START = 10.0, 2.0
# Gradients so many times the median; one is clipped and harmless, several are a pattern.
GRADIENT_TIMES, GRADIENTS = 10.0, 3
RECENT = 50


def falling_chosen(history: History, facts: RunFacts) -> Finding | None:
    """The margin rises because rejected answers fall faster than the chosen ones."""
    rewards, margins = history["reward/chosen"], history["reward/margin"]
    if facts.scores or not facts.beta or "logprob/chosen" not in history:
        return None
    if len(rewards) < WINDOW or len(margins) < WINDOW:
        return None
    nats = rewards.late(WINDOW) / facts.beta
    error = _deviation(rewards, WINDOW) / facts.beta / math.sqrt(WINDOW)
    if nats + SURE * error > -FALLEN_NATS or margins.late(WINDOW) <= margins.early(WINDOW):
        return None
    remedy = f"set {facts.sft} (1.0 is usual), which adds a supervised term on the chosen answers"
    return Finding(
        id="falling-chosen",
        severity="note",
        what=f"chosen answers became less likely by {-nats:.0f} nats while the margin rose to "
        f"{margins.late(WINDOW):.2f}: the loss only wants them apart, and rejected ones fall "
        "faster; what becomes likelier instead is not in the data",
        remedy=(remedy if facts.sft else "use a method with a supervised term, such as rpo_alpha "
        "of dpo") + "; or raise beta, or lower learning_rate",
        evidence={"chosen_nats": nats, "error": error, "margin": margins.late(WINDOW)},
    )  # fmt: skip


def over_fitting(history: History, facts: RunFacts) -> Finding | None:
    """Training margins rise while held-out evaluations get worse."""
    if facts.scores or facts.samples:
        return None
    worse = _past_best(history)
    margins = history["reward/margin"]
    if worse is None or len(margins) < 2:
        return None
    window = min(WINDOW, max(1, len(margins) // 2))
    if margins.late(window) <= margins.early(window):
        return None
    return Finding(
        id="over-fitting",
        severity="warning",
        what=f"training margins rise ({margins.early(window):.2f} to {margins.late(window):.2f}) "
        f"while held-out evaluations get worse: {_told(worse)}",
        remedy="fewer num_train_epochs, more data, a lower learning_rate, or "
        "load_best_model_at_end with eval_steps",
        evidence={**worse, "margin": margins.late(window)},
    )


def reward_model_past_best(history: History, facts: RunFacts) -> Finding | None:
    """A reward model whose held-out evaluations get worse."""
    worse = _past_best(history) if facts.scores else None
    if worse is None:
        return None
    return Finding(
        id="reward-model-past-best",
        severity="warning",
        what=f"the reward model is past its best: {_told(worse)}",
        remedy="one epoch (num_train_epochs 1), and load_best_model_at_end with eval_steps: a "
        "reward model that fits its pairs too well is what a policy hacks",
        evidence=worse,
    )


def value_loss_exploding(history: History, facts: RunFacts) -> Finding | None:
    """The value head does not follow the returns."""
    losses = history["loss/value"]
    if len(losses) < WINDOW:
        return None
    early, late = median(losses.values[: WINDOW // 2]), losses.late_median(WINDOW // 4)
    if late < max(VALUE_LEAST, VALUE_TIMES * early):
        return None
    return Finding(
        id="value-loss-exploding",
        severity="warning",
        what=f"the value loss went from {early:.3g} to {late:.3g}: advantages are noise",
        remedy="normalise rewards (reward_normalization auto), lower learning_rate or vf_coef, or "
        "give the value head a model of its own (value_model copy)",
        evidence={"early": early, "late": late},
    )


def clip_fraction_high(history: History, facts: RunFacts) -> Finding | None:
    """Most of what a step could teach is cut off."""
    shares = history["policy/clipfrac"]
    if len(shares) < WINDOW or shares.late(WINDOW) <= CLIPPED:
        return None
    share = shares.late(WINDOW)
    return Finding(
        id="clip-fraction-high",
        severity="warning",
        what=f"{share:.0%} of the tokens are clipped: steps are larger than cliprange allows",
        remedy="lower learning_rate, or train fewer passes over each batch of answers",
        evidence={"clipfrac": share},
    )


def loss_spike(history: History, facts: RunFacts) -> Finding | None:
    """One loss far above those before it."""
    losses = history["loss"]
    # The surrogate of a policy gradient is no measure of anything: it is near 0 by construction.
    if facts.samples or len(losses) <= WINDOW:
        return None
    before = losses.values[-RECENT - 1 : -1]
    usual = median(before)
    spread = max(abs(value - usual) for value in before)
    start = losses.early(WINDOW // 2)
    if losses.last <= max(usual + SPIKE_DEVIATIONS * spread, SPIKE_START * start):
        return None
    return Finding(
        id="loss-spike",
        severity="warning",
        what=f"the loss jumped to {losses.last:.3g}, from {usual:.3g} (median of the last "
        f"{len(before)} logged steps)",
        remedy="lower learning_rate, lengthen the warm-up (warmup_ratio), or look at the records "
        "of this step",
        evidence={"loss": losses.last, "median": usual, "largest_deviation": spread},
    )


def gradient_spike(history: History, facts: RunFacts) -> Finding | None:
    """Gradients that are again and again far above the usual."""
    norms = history["grad_norm"]
    if len(norms) <= RECENT:
        return None
    recent = norms.values[-RECENT:]
    usual = median(recent)
    high = [value for value in recent if value > GRADIENT_TIMES * usual]
    if len(high) < GRADIENTS:
        return None
    return Finding(
        id="gradient-spike",
        severity="warning",
        what=f"{len(high)} of the last {RECENT} gradients were above {GRADIENT_TIMES:g} times the "
        f"median ({usual:.3g}), the largest {max(high):.3g}: clipping hides it, but these steps "
        "point where single records do",
        remedy="lower learning_rate, raise gradient_accumulation_steps, or look at the data "
        "(penchant data inspect)",
        evidence={"median": usual, "largest": max(high), "count": len(high)},
    )


def _deviation(series: Series, count: int) -> float:
    values, mean = series.values[-count:], series.late(count)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))


def _past_best(history: History) -> dict[str, float] | None:
    """The best evaluation and the present one, where all since the best are clearly worse."""
    accuracy = _fall(history)
    return accuracy if accuracy is not None else _loss_above(history)


def _fall(history: History) -> dict[str, float] | None:
    accuracies = history["eval/reward/accuracy"]
    if len(accuracies) <= WORSE:
        return None
    # Of equals the last: what is as good as the best is not past it.
    best = max(range(len(accuracies)), key=lambda i: (accuracies.values[i], i))
    since = accuracies.values[best + 1 :]
    counts = history["eval/num_examples"]
    if len(since) < WORSE or not counts:
        return None
    top = accuracies.values[best]
    # Both evaluations are of the same records: most of what chance does to one it does to both.
    error = math.sqrt(max(top * (1 - top), 0.0) / counts.last)
    if top - max(since[-WORSE:]) <= max(LOST_ACCURACY, error):
        return None
    step = accuracies.steps[best]
    return {"best_accuracy": top, "accuracy": since[-1], "best_step": step}


def _loss_above(history: History) -> dict[str, float] | None:
    losses = history["eval/loss"]
    if len(losses) <= WORSE:
        return None
    best = min(range(len(losses)), key=lambda i: (losses.values[i], -i))
    since, least = losses.values[best + 1 :], losses.values[best]
    if len(since) < WORSE or least <= 0 or min(since[-WORSE:]) <= LOSS_ABOVE * least:
        return None
    return {"best_loss": least, "loss": since[-1], "best_step": losses.steps[best]}


def _told(worse: dict[str, float]) -> str:
    name = "accuracy" if "best_accuracy" in worse else "loss"
    now, best, step = worse[name], worse[f"best_{name}"], worse["best_step"]
    return f"{name} {now:.3f}, after {best:.3f} at step {step:.0f}"
