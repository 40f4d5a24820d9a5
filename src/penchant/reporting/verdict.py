"""What became of a run, in two sentences: a pure function of what it wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from penchant.guards.monitors.history import DRIFTED_KL, HEALTHY_KL, Divergence, History, divergence
from penchant.methods import METHODS
from penchant.reporting.reading import Run, number
from penchant.reporting.words import duration

Kind = Literal["sound", "doubtful", "failed", "unfinished", "unknown"]

# What outweighs what: the first of these that was found is the verdict.
FAILURES = {
    "not-finite": "the run broke down",
    "reward-hacking": "the reward was hacked",
    "collapse": "the answers collapsed",
    "drift": "the policy drifted from its reference",
    "value-loss-exploding": "the value head diverged",
    "over-fitting": "the model over-fitted",
    "reward-model-past-best": "the reward model is past its best",
    "no-learning": "the model did not learn",
}
# Of accuracy, a share, that is noise rather than learning.
UNMOVED = 0.005
# Standard errors that a change must exceed: the two-sided normal quantile of 95%.
CHANCE = 1.96
# Batches averaged at either end of a training curve.
BATCHES = 3


@dataclass(frozen=True)
class Verdict:
    """Two sentences, and in a word how good the news is."""

    kind: Kind
    outcome: str
    state: str

    def __str__(self) -> str:
        return f"{self.outcome} {self.state}"


@dataclass(frozen=True)
class Change:
    """A figure at the start and at the end of a run.

    Attributes:
        name: of the figure.
        before, after: its values.
        error: the standard error of `after`; None where it is not known.
        chance: a smaller difference may be chance alone, at 95%; None likewise.
    """

    name: str
    before: float
    after: float
    error: float | None = None
    chance: float | None = None

    @property
    def better(self) -> bool:
        """Whether it changed to the better by more than noise."""
        gain = self.after - self.before
        return (-gain if self.name.endswith("loss") else gain) > UNMOVED

    @property
    def by_chance(self) -> bool:
        """Whether the change may be nothing but chance, at the level of 95%."""
        return self.chance is not None and abs(self.after - self.before) < self.chance

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2g}"
        if abs(self.after - self.before) < UNMOVED:
            return f"{self.name} stayed at {self.after:.3g}{error}"
        verb = "rose" if self.after > self.before else "fell"
        return f"{self.name} {verb} from {self.before:.3g} to {self.after:.3g}{error}"


def judge(run: Run) -> Verdict:
    """Judge a run by its findings, its evaluations and its monitors."""
    history = run.history
    stopped = str((run.summary or {}).get("stopped") or "")
    kind, outcome = _outcome(run, history)
    if kind == "sound" and stopped:
        kind = "doubtful"
    if run.summary is None and kind != "failed":
        kind = "unfinished"
    return Verdict(kind, _sentence(outcome), _sentence(_state(run, stopped)))


def changes(history: History, start: float | None = None) -> list[Change]:
    """What the run changed, the most telling first: held out before trained on.

    Args:
        history: of the run.
        start: the held-out accuracy at the start, where it is known without an evaluation.
    """
    names = {
        "held-out accuracy": ("eval/reward/accuracy",),
        "held-out reward": ("eval/reward/mean", "monitor/reward", "monitor/held_out_reward"),
        "held-out margin": ("eval/reward/margin",),
        "training reward": ("reward/mean",),
        "training accuracy": ("reward/accuracy",),
        "training loss": ("loss",),
    }
    if any(history[name] for name in ("reward/mean", "reward/std", "monitor/reward")):
        del names["training loss"]  # of a policy gradient: it does not say how far it has come
    figures = []
    accuracy = history["eval/reward/accuracy"]
    if len(accuracy) == 1 and start is not None:
        figures.append(_accuracy(history, start, accuracy.last))
    for name, metrics in names.items():
        series = next((history[metric] for metric in metrics if len(history[metric]) > 1), None)
        if series is not None:
            count = min(BATCHES, len(series) // 2) if name.startswith("training") else 1
            ends = series.early(count), series.late(count)
            held_out = name == "held-out accuracy"
            figures.append(_accuracy(history, *ends) if held_out else Change(name, *ends))
    return figures


def start_accuracy(run: Run) -> float | None:
    """Of a run that starts at its reference, a half: no log-ratio differs from 0 there."""
    spec = METHODS.get(run.method)
    if spec is None or not spec.needs_reference or spec.samples:
        return None
    summary = run.summary or {}
    alone = "reference" in summary and summary["reference"] is None  # as mpo with losses of sft
    return None if alone or run.config.get("reference_model") else 0.5


def _accuracy(history: History, before: float, after: float) -> Change:
    """Of shares of the held-out records; without an error where their number is unknown."""
    counts = history["eval/num_examples"]
    if not counts or not (0 <= before <= 1 and 0 <= after <= 1):
        return Change("held-out accuracy", before, after)
    errors = [math.sqrt(share * (1 - share) / counts.last) for share in (before, after)]
    # A share of 1 has no error of its own, so that the larger one counts. Half a record more, the
    # correction for continuity, makes it the sign test of few records: 5 right of 5 are chance.
    chance = CHANCE * max(errors) + 0.5 / counts.last
    return Change("held-out accuracy", before, after, errors[1], chance)


def final_divergence(history: History) -> Divergence | None:
    """The last of the policy's own answers from the reference: held out, monitored, trained on."""
    watched, evaluated = divergence(history), history["eval/kl/sequence"]
    if not evaluated or (watched and history[watched.metric].steps[-1] > evaluated.steps[-1]):
        return watched
    errors = history["eval/kl/sequence_error"]
    return Divergence(evaluated.last, errors.last if errors else 0.0, "eval/kl/sequence")


def in_nats(reading: Divergence) -> str:
    """A divergence with its error, for people."""
    error = f" ± {reading.error:.2g}" if reading.error else ""
    return f"{reading.value:.3g}{error} nats per answer"


def against_band(value: float, error: float | None) -> str:
    """A divergence of own answers beside what is healthy, for people."""
    low, high = HEALTHY_KL
    where = "below" if value < low else "above" if value > high else "within"
    reading = Divergence(value, error or 0.0, "")
    return f"{in_nats(reading)} from the reference, {where} the healthy {low:g} to {high:g}"


def _outcome(run: Run, history: History) -> tuple[Kind, str]:
    """The judgement; numbers of findings stand in `what`."""
    worst = _worst(run)
    figures = changes(history, start_accuracy(run))
    reading = final_divergence(history)
    kl = None if reading is None else reading.value
    if worst is not None:
        what = f"{FAILURES[worst['id']]} (step {worst['step']}): {worst.get('what', '')}"
        action = worst.get("action")
        if not action:
            return "failed", what
        back = kl is not None and HEALTHY_KL[0] <= kl <= HEALTHY_KL[1]
        end = f"; its answers ended {in_nats(reading)} from the reference" if reading else ""
        return ("doubtful" if back else "failed"), f"{what}; what was done: {action}{end}"
    if not figures:
        return "unknown", _nothing_told(history)
    first = str(figures[0]) + (f", {figures[1]}" if len(figures) > 1 else "")
    if reading is not None and reading.value - reading.error > DRIFTED_KL:
        return "failed", (
            f"the policy drifted from its reference: {in_nats(reading)} (healthy: "
            f"{HEALTHY_KL[0]:g} to {HEALTHY_KL[1]:g}); {first}"
        )
    if figures[0].name == "held-out accuracy":
        gain = figures[0].after - figures[0].before
        if abs(gain) < UNMOVED and all(abs(c.after - c.before) < UNMOVED for c in figures):
            return "failed", f"the model did not learn: {first}"
        if figures[0].by_chance:
            return "doubtful", f"the change cannot be told apart from chance: {first}"
        if gain < -UNMOVED:
            return "failed", f"the model got worse: {first}"
        margin = next((c for c in figures if c.name == "held-out margin"), None)
        if margin is not None and margin.after < margin.before - UNMOVED:
            return "doubtful", f"more pairs are ranked right, but by less: {first}"
    elif not figures[0].better:
        return "doubtful", f"nothing shows that the run helped: {first}"
    known = "" if reading is None else f"; its answers are {in_nats(reading)} from the reference"
    if kl is not None and kl < HEALTHY_KL[0]:
        return "doubtful", f"{first}{known}, below the {HEALTHY_KL[0]:g} of a run that moved"
    if kl is not None and kl > HEALTHY_KL[1]:
        return "doubtful", f"{first}{known}, above the healthy {HEALTHY_KL[1]:g}"
    return "sound", first + (f"{known}, within the healthy band" if known else "")


def _nothing_told(history: History) -> str:
    if history["reward/std"] and not history["reward/mean"]:
        return "rewards that compare its answers tell nothing of the policy: set monitor_reward"
    if len(history["reward/mean"]) == 1:
        return (
            "answers were collected once, before the first update, so that nothing tells what the "
            "run changed: hold out prompts (train_fraction), or lower batch_size to collect more "
            "often"
        )
    return "nothing was logged from which the outcome could be told"


def _worst(run: Run) -> dict[str, Any] | None:
    """The finding made during the run that outweighs the others, the latest of its kind."""
    for name in FAILURES:
        findings = [one for one in run.findings if one.get("id") == name and one["step"] > 0]
        if findings:
            return findings[-1]
    return None


def _state(run: Run, stopped: str) -> str:
    summary = run.summary or {}
    counts = {
        level: sum(one.get("severity") == level for one in run.findings)
        for level in ("error", "warning")
    }
    said = " and ".join(
        f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n
    )  # fmt: skip
    findings = f"{said} {'was' if sum(counts.values()) == 1 else 'were'} found" if said else (
        "no error or warning was found"
    )  # fmt: skip
    if stopped:
        return f"the run was stopped at step {run.steps}: {stopped}; {findings}"
    if run.summary is None:
        what = "is still being written" if run.live else "did not finish"
        return f"the run {what}: the last logged step is {run.steps}; {findings}"
    seconds = number(summary.get("train_seconds"))
    took = "" if seconds is None else f" in {duration(seconds)}"
    return f"the run finished {run.steps:,} steps{took}, and {findings}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
