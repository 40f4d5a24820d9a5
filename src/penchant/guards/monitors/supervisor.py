"""The guard of one run: checks at their time, findings from the history, and what is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from penchant.config.actions import Actions
from penchant.core.evaluation import BOUNDED_KL
from penchant.core.findings import Finding
from penchant.guards.monitors.detectors import detect
from penchant.guards.monitors.history import History, RunFacts, divergence

if TYPE_CHECKING:
    from penchant.guards.monitors.levers import Lever
    from penchant.guards.monitors.watch import Watch
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
        roll_back: puts the weights of a step's checkpoint back.
        watch: lets the policy answer; None where there is nothing to answer.
        levers: what `adapt` turns, the same at every call: the hold on the reference, where the
            method has one, and the learning rate.
        length: the same of the price of length, for a mean length at the start.
        stopped: why the run is to end; empty while it goes on.
        best_step: of the check to go back to; None before there is one.
    """

    run: RunDirectory
    facts: RunFacts
    actions: Actions
    roll_back: Callable[[int], None]
    watch: Watch | None = None
    levers: Callable[[], Sequence[Lever]] = tuple
    length: Callable[[int], Lever] | None = None
    history: History = field(default_factory=History)
    stopped: str = ""
    best_step: int | None = None
    acted: dict[str, int] = field(default_factory=dict)
    rollbacks: int = 0
    adapted: dict[str, float] = field(default_factory=dict)
    raised_at: int | None = None
    fresh: bool = False

    def note(self, record: Mapping[str, Any]) -> None:
        """Take in what was logged."""
        self.history.add(record)
        self.fresh = True

    @property
    def monitor_seconds(self) -> float:
        """What all answers to held-out prompts took so far."""
        return 0.0 if self.watch is None else self.watch.pace.seconds

    def begin(self) -> None:
        """Let the starting model answer."""
        if self.watch is not None and self.watch.begin():
            self.best_step = 0

    def after(self, step: int, train_seconds: float) -> bool:
        """Look at what a step has led to; tells whether its weights are worth keeping.

        Args:
            step: that is done.
            train_seconds: that all steps took so far.
        """
        watch = self.watch
        metrics = None if watch is None else watch.look(step, train_seconds)
        if self.fresh:
            self.fresh = False
            for finding in detect(self.history, self.facts, silenced=self.run.silence):
                self._handle(step, finding)
        if watch is None or metrics is None or step in self.acted.values():
            return False  # weights that had to be acted upon are not the best
        if not watch.is_best(step, metrics):
            return False
        self.best_step = step
        return self.actions.wants("rollback")

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
        levers = list(self.levers())
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

    def state(self) -> dict[str, Any]:
        """What goes on after an interruption, as JSON."""
        return {
            "stopped": self.stopped,
            "best_step": self.best_step,
            "acted": self.acted,
            "rollbacks": self.rollbacks,
            "adapted": self.adapted,
            "raised_at": self.raised_at,
            **({} if self.watch is None else self.watch.state()),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; the history is what the run has logged."""
        self.stopped, self.best_step = state["stopped"], state["best_step"]
        self.acted = dict(state["acted"])
        self.rollbacks, self.adapted = state["rollbacks"], dict(state["adapted"])
        self.raised_at = state["raised_at"]
        if self.watch is not None:
            self.watch.load_state(state)
        self.history = History(self.run.read("metrics.jsonl"))
        for lever in self.levers() if self.adapted else ():
            if lever.name in self.adapted:
                lever.put(self.adapted[lever.name])
        if self.length is not None and "length_penalty" in self.adapted:
            lever = self.length(round(self.history["monitor/length"].first))
            lever.put(self.adapted["length_penalty"])
