"""The guard of one run: checks at their time, findings from the history, and what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from penchant.config.actions import Actions
from penchant.core.evaluation import BOUNDED_KL
from penchant.core.findings import Finding
from penchant.guards.monitors.detectors import detect
from penchant.guards.monitors.detectors_answers import divergence
from penchant.guards.monitors.history import History, RunFacts
from penchant.guards.monitors.levers import Lever
from penchant.guards.monitors.pace import Pace

if TYPE_CHECKING:
    from penchant.guards.monitors.monitor import Monitor
    from penchant.training.folder import RunDirectory

# Returns to the best checkpoint in one run: what fails thrice will fail again.
ROLLBACKS = 3
# Share of the run, and steps at least, that an action is given to show before the next.
PATIENCE, PATIENCE_STEPS = 0.03, 4
# Readings of the divergence that a stronger hold is given: the first may be of earlier answers.
READINGS = 2


@dataclass
class Supervisor:
    """Watches a run between its steps.

    Attributes:
        run: where findings and answers are written.
        facts: of the run.
        actions: what findings do.
        monitor: None where there is nothing to answer; pace: when it looks.
        log: writes a record of metrics.
        roll_back: puts the weights of a step's checkpoint back.
        levers: what `adapt` turns: the hold on the reference, where the method has one, and the
            learning rate.
        length: the same of the price of length, for a mean length at the start.
        stopped: why the run is to end; empty while it goes on.
        best_step: of the check to go back to; None before there is one.
    """

    run: RunDirectory
    facts: RunFacts
    actions: Actions
    monitor: Monitor | None
    pace: Pace
    log: Callable[[Mapping[str, Any]], None]
    roll_back: Callable[[int], None]
    levers: Sequence[Lever] = ()
    length: Callable[[int], Lever] | None = None
    history: History = field(default_factory=History)
    stopped: str = ""
    best_step: int | None = None
    best: tuple[float, float] | None = None
    acted: dict[str, int] = field(default_factory=dict)
    rollbacks: int = 0
    adapted: dict[str, float] = field(default_factory=dict)
    raised_at: int | None = None
    start: list[float] = field(default_factory=list)
    fresh: bool = False

    def note(self, record: Mapping[str, Any]) -> None:
        """Take in what was logged."""
        self.history.add(record)
        self.fresh = True

    def begin(self, run_seconds: Callable[[], float]) -> None:
        """Let the starting model answer.

        Args:
            run_seconds: a prediction of the run's time.
        """
        if self.monitor is None:
            return
        try:
            expected = self._expected_seconds()
            whole = run_seconds()
        except Exception as error:
            self._give_up(0, error)
            return
        if self.pace.too_slow(expected, whole):
            self.monitor = None
            self.run.say(0, _too_slow(expected, whole, self.pace.share))
            return
        metrics = self._check(0)
        if metrics is not None:
            self._judge(0, metrics)

    def after(self, step: int, train_seconds: float) -> bool:
        """Look at what a step has led to; tells whether its weights are worth keeping.

        Args:
            step: that is done.
            train_seconds: that all steps took so far.
        """
        metrics = None
        if self.monitor is not None and self.pace.due(step, train_seconds):
            metrics = self._check(step)
        if self.fresh:
            self.fresh = False
            for finding in detect(self.history, self.facts, silenced=self.run.silence):
                self._handle(step, finding)
        if metrics is None or step in self.acted.values():
            return False  # weights that had to be acted upon are not the best
        return self._judge(step, metrics) and self.actions.wants("rollback")

    def _check(self, step: int) -> dict[str, float] | None:
        """What the answers to the held-out prompts say; None where that failed."""
        assert self.monitor is not None
        try:
            checked = self.monitor.check(self.start)
        except Exception as error:
            self._give_up(step, error)
            return None
        if step == 0:
            self.start = checked.judged
        self.pace.spent(step, checked.metrics["monitor/seconds"])
        self.log({"step": step, **checked.metrics})
        for answer in checked.answers:
            self.run.append("monitor.jsonl", {"step": step, **answer})
        return checked.metrics

    def _judge(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether a check is the best so far: reward at bounded KL; without a reward the last."""
        if metrics.get("monitor/kl_sequence", 0.0) > BOUNDED_KL:
            return False
        rank = (metrics.get("monitor/reward", 0.0), float(step))
        if self.best is not None and rank <= self.best:
            return False
        self.best, self.best_step = rank, step
        return True

    def _expected_seconds(self) -> float:
        """Of a check, from one with a sixteenth of the tokens."""
        assert self.monitor is not None
        few = max(1, self.monitor.sampling.max_completion_length // 16)
        short = replace(self.monitor.sampling, max_completion_length=few)
        began = time.perf_counter()
        replace(self.monitor, sampling=short).check()
        seconds = self.run.team.agree(time.perf_counter() - began)
        return seconds * self.monitor.sampling.max_completion_length / few / 2

    def _handle(self, step: int, finding: Finding) -> None:
        action = self.actions.of(finding.id)
        if action == "warn":
            self.run.say(step, finding, once=True)
            return
        patience = max(PATIENCE_STEPS, int(PATIENCE * self.facts.num_steps))
        if finding.id in self.acted and step - self.acted[finding.id] < patience:
            return
        if self.stopped:
            return
        if action == "adapt" and self._holds(finding):
            waiting = replace(finding, action="adapt: a hold raised before is at work")
            self.run.say(step, waiting, once=True)
            return
        done = {"adapt": self._adapt, "rollback": self._return, "stop": self._stop}[action](finding)
        self.acted[finding.id] = step
        acted = replace(finding, action=f"{action}: {done or 'nothing left to do'}")
        self.run.say(step, acted, once=not done)

    def _holds(self, finding: Finding) -> bool:
        """Whether a hold that was raised is doing its work, or has done it while other signs lag.

        A coefficient that is doubled before the last doubling shows ends far too high.
        """
        now = divergence(self.history)
        if self.raised_at is None or now is None:
            return False
        if finding.id in self.acted and now.value < BOUNDED_KL:
            return True
        readings = self.history[now.metric]
        since = sum(step > self.raised_at for step in readings.steps)
        return since < READINGS or readings.last < readings.values[-2]

    def _adapt(self, finding: Finding) -> str:
        levers = list(self.levers)
        if "length" in finding.evidence and self.length is not None:
            levers.append(self.length(round(self.history["monitor/length"].first)))
        turns = []
        for lever in levers:
            if turned := lever.turn():
                self.adapted[lever.name] = lever.get()
                self.raised_at = self.history.step
                turns.append(turned)
        return ", ".join(turns)

    def _return(self, finding: Finding) -> str:
        target = self.best_step
        if target is None or self.rollbacks >= ROLLBACKS:
            return ""
        self.rollbacks += 1
        self.roll_back(target)
        return f"back to the weights of step {target} (return {self.rollbacks} of {ROLLBACKS})"

    def _stop(self, finding: Finding) -> str:
        self.stopped = f"{finding.id}: {finding.what}"
        return "the run ends here, with its evaluation and its model"

    def _give_up(self, step: int, error: Exception) -> None:
        """Without monitors, the run goes on; the reason is a finding."""
        self.monitor = None
        reason = f"{type(error).__name__}: {error}"
        self.run.say(step, Finding(
            id="monitor-failed",
            severity="warning",
            what=f"monitored answers failed, and are left out from here on: {reason}",
            remedy="see the error; monitor_prompts 0 switches them off",
            evidence={"error": reason},
        ))  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What goes on after an interruption, as JSON."""
        return {
            "pace": self.pace.state(),
            "stopped": self.stopped,
            "best_step": self.best_step,
            "best": self.best,
            "acted": self.acted,
            "rollbacks": self.rollbacks,
            "adapted": self.adapted,
            "raised_at": self.raised_at,
            "start": self.start,
            "monitoring": self.monitor is not None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; the history is what the run has logged."""
        self.pace.load_state(state["pace"])
        self.stopped, self.best_step = state["stopped"], state["best_step"]
        self.best = tuple(state["best"]) if state["best"] else None
        self.acted = dict(state["acted"])
        self.rollbacks, self.adapted = state["rollbacks"], dict(state["adapted"])
        self.raised_at = state["raised_at"]
        self.start = list(state["start"])
        if not state["monitoring"]:
            self.monitor = None
        self.history = History(self.run.read("metrics.jsonl"))
        for lever in self.levers:
            if lever.name in self.adapted:
                lever.put(self.adapted[lever.name])
        if self.length is not None and "length_penalty" in self.adapted:
            lever = self.length(round(self.history["monitor/length"].first))
            lever.put(self.adapted["length_penalty"])


def _too_slow(seconds: float, run_seconds: float, share: float) -> Finding:
    return Finding(
        id="monitor-too-slow",
        severity="note",
        what=f"answering held-out prompts would take about {seconds:.1f} s each time, in a run of "
        f"about {run_seconds:.1f} s: more than monitor_share ({share:g}) leaves for it, so that "
        "there are no monitors",
        remedy="set monitor_steps to have them whatever they cost, raise monitor_share, or lower "
        "monitor_prompts or monitor_length",
        evidence={"seconds": seconds, "run_seconds": run_seconds},
    )
