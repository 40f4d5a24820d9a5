"""Detectors of what happens to the answers: reward hacking, drift, no learning, collapse."""

from __future__ import annotations

from typing import Any

from penchant.core.findings import Finding
from penchant.guards.monitors.history import (
    BATCHES,
    DRIFTED_KL,
    HEALTHY_KL,
    History,
    RunFacts,
    Series,
    divergence,
)

# Nats an answer that rounding, or a learning rate near 0, reaches too.
UNMOVED_KL = 0.05
# A margin of implicit rewards that is noise.
UNMOVED_MARGIN = 0.01
# Before that, warm-up and small steps are reason enough for not having moved.
FAIR_SHARE, FAIR_STEPS = 0.5, 20
# Deviations of the first answers' rewards by which a reward has risen in earnest.
RISE = 0.5
# Standard errors that are no accident.
SURE = 2.0
# What speaks against a rising reward, against the start: answers twice as long (and at least as
# many tokens more), so much more of them repeated, so much less likely to the reference, reward
# models that disagree twice as much.
LONGER, LONGER_TOKENS = 2.0, 10.0
REPEATED = 0.15
PERPLEXITY = 3.0
DISAGREEMENT = 2.0
# Distinct-2 of the start that is left when answers have become few; half of it is a ruin.
DISTINCT_LEFT = 0.6
# Answers that open alike, in all and more than at the start.
ALIKE, ALIKE_MORE = 0.75, 0.4
# Self-BLEU likewise: unlike answers to unlike prompts are below 0.3.
BLEU, BLEU_MORE = 0.6, 0.3


def drift(history: History, facts: RunFacts) -> Finding | None:
    """The policy is too far from the reference, beyond the error of the estimate."""
    reading = None if facts.taught else divergence(history)
    if reading is None or reading.value - reading.error <= DRIFTED_KL:
        return None
    return Finding(
        id="drift",
        severity="warning",
        what=f"answers are {reading.value:.1f} nats from the reference (standard error "
        f"{reading.error:.1f}); above {DRIFTED_KL:g} they are those of another model, and the "
        f"healthy range is {HEALTHY_KL[0]:g} to {HEALTHY_KL[1]:g}",
        remedy=f"{facts.hold}, lower learning_rate, or stop earlier",
        evidence={"metric": reading.metric, "kl": reading.value, "error": reading.error},
    )


def no_learning(history: History, facts: RunFacts) -> Finding | None:
    """A fair share of the run is over, and nothing has moved."""
    step, taken = history.step, history.step - history.returned
    if facts.scores or taken < max(FAIR_STEPS, FAIR_SHARE * facts.num_steps):
        return None
    reading = divergence(history)
    if reading is None or reading.value + SURE * reading.error > UNMOVED_KL:
        return None
    margins = history["reward/margin"]
    window = max(1, len(margins) // 4)
    moved = abs(margins.late(window) - margins.early(window)) if margins else 0.0
    if moved > UNMOVED_MARGIN:
        return None
    return Finding(
        id="no-learning",
        severity="warning",
        what=f"after {step} of {facts.num_steps} steps the policy is still the reference: "
        f"{reading.value:.3g} nats per answer away"
        + (f", margins moved by {moved:.2g}" if margins else ""),
        remedy="raise learning_rate (LoRA takes about ten times that of all weights), or lower "
        f"{facts.strength or 'the penalties'}; see that chosen and rejected, or the rewards of "
        "answers, differ at all",
        evidence={
            "metric": reading.metric,
            "kl": reading.value,
            "margin_change": moved,
            "step": step,
        },
    )


def collapse(history: History, facts: RunFacts) -> Finding | None:
    """Answers to different prompts have become the same."""
    signs: dict[str, dict[str, float]] = {}
    distinct = history["monitor/distinct_2"]
    if len(distinct) > 1 and distinct.last < DISTINCT_LEFT * distinct.first:
        signs["distinct_2"] = _change(distinct)
    alike = history["monitor/same_opening"]
    if len(alike) > 1 and alike.last >= max(ALIKE, alike.first + ALIKE_MORE):
        signs["same_opening"] = _change(alike)
    bleu = history["monitor/self_bleu"]
    if len(bleu) > 1 and bleu.last >= max(BLEU, bleu.first + BLEU_MORE):
        signs["self_bleu"] = _change(bleu)
    # An opening alone may be what was asked for ("Sure, ..."); few words or equal texts are not.
    if not signs.keys() & {"distinct_2", "self_bleu"}:
        return None
    return Finding(
        id="collapse",
        severity="warning",
        what="answers to different prompts are becoming the same: " + _told(signs),
        remedy=f"{facts.hold}, lower learning_rate, or go back to an earlier checkpoint"
        + (" and set entropy_coef" if facts.samples else ""),
        evidence=signs,
    )


def reward_hacking(history: History, facts: RunFacts) -> Finding | None:
    """The reward rises while something that should not change says otherwise."""
    rise = _rise(history)
    if rise is None:
        return None
    signs = {**_far(history), **_worse(history)}
    if not signs:
        return None
    sides = f"from {rise['start']:.3g} to {rise['now']:.3g}"
    return Finding(
        id="reward-hacking",
        severity="warning",
        what=f"the reward rose {sides} while " + _told(signs),
        remedy=f"{facts.hold}, read the answers in monitor.jsonl, and correct the reward: penalise "
        "length or repetition, use an ensemble, or a reward that sees what this one does not",
        evidence={"reward": rise, **signs},
    )


def _rise(history: History) -> dict[str, float] | None:
    """The reward at the start and now, where it has risen by more than chance."""
    # Training batches are larger and more frequent than monitored answers.
    for name, count in (("reward", BATCHES), ("monitor/reward", 1)):
        values = history["reward/mean" if name == "reward" else name]
        spreads = history["reward/std" if name == "reward" else "monitor/reward_std"]
        if len(values) <= count or not spreads:
            continue
        start, now = values.early(count), values.late(count)
        if now - start > RISE * (spreads.early(count) or 1e-8):
            return {"start": start, "now": now, "std": spreads.early(count)}
    return None


def _far(history: History) -> dict[str, dict[str, float]]:
    reading = divergence(history)
    if reading is None or reading.value - reading.error <= DRIFTED_KL:
        return {}
    return {"kl": {"start": 0.0, "now": reading.value, "error": reading.error}}


def _worse(history: History) -> dict[str, dict[str, float]]:
    """What else speaks against the answers, by name, each with its start and its present."""
    signs = {}
    length = history["monitor/length"]
    if len(length) > 1 and length.last > max(LONGER * length.first, length.first + LONGER_TOKENS):
        signs["length"] = _change(length)
    repeated = history["monitor/repetition"]
    if len(repeated) > 1 and repeated.last > repeated.first + REPEATED:
        signs["repetition"] = _change(repeated)
    perplexity = history["monitor/ref_perplexity"]
    if len(perplexity) > 1 and perplexity.last > PERPLEXITY * perplexity.first:
        signs["ref_perplexity"] = _change(perplexity)
    apart = history["monitor/reward_disagreement"]
    if len(apart) > 1 and apart.last > DISAGREEMENT * apart.first:
        signs["reward_disagreement"] = _change(apart)
    other, error = history["monitor/held_out_reward"], history["monitor/held_out_reward_error"]
    if len(other) > 1 and error and other.last < other.first - SURE * error.last:
        signs["held_out_reward"] = _change(other)
    return signs


def _change(series: Series) -> dict[str, float]:
    return {"start": series.first, "now": series.last}


def _told(signs: dict[str, Any]) -> str:
    names = {
        "kl": "the divergence from the reference, in nats per answer,",
        "length": "the length in tokens",
        "repetition": "the share of repeated 3-grams",
        "ref_perplexity": "the perplexity under the reference",
        "reward_disagreement": "the disagreement of the reward models",
        "held_out_reward": "the reward that is not trained on",
        "distinct_2": "distinct-2",
        "same_opening": "the share that opens alike",
        "self_bleu": "self-BLEU",
    }
    return ", ".join(
        f"{names[name]} went from {sign['start']:.3g} to {sign['now']:.3g}"
        for name, sign in signs.items()
    )


OF_ANSWERS = {
    "reward-hacking": reward_hacking,
    "drift": drift,
    "no-learning": no_learning,
    "collapse": collapse,
}
