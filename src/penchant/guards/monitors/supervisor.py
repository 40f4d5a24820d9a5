"""The guard of one run: checks at their time, and findings from the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penchant.guards.monitors.detectors import detect
from penchant.guards.monitors.history import History, RunFacts

if TYPE_CHECKING:
    from penchant.core.findings import Finding
    from penchant.guards.monitors.watch import Watch
    from penchant.training.folder import RunDirectory


@dataclass
class Supervisor:
    """Watches a run between its steps, and says what it finds; `ActingSupervisor` acts on it.

    Attributes:
        run: where findings and answers are written.
        facts: of the run.
        watch: lets the policy answer; None where there is nothing to answer.
        stopped: why the run is to end; empty while it goes on.
        best_step: of the check to go back to; None before there is one.
        returns: whether a finding may lead back to it.
        acted: the step of the last action, by the id of its finding.
        fresh: whether something was logged since the last look at the history.
    """

    run: RunDirectory
    facts: RunFacts
    watch: Watch | None = None
    history: History = field(default_factory=History)
    stopped: str = ""
    best_step: int | None = None
    returns: bool = False
    acted: dict[str, int] = field(default_factory=dict)
    fresh: bool = False

    def note(self, record: Mapping[str, Any]) -> None:
        """Take in what was logged."""
        self.history.add(record)
        self.fresh = True

    @property
    def monitor_seconds(self) -> float:
        """What all answers to held-out prompts took so far."""
        return 0.0 if self.watch is None else self.watch.pace.seconds

    def asked(self) -> dict[str, str]:
        """What judges of `monitor_reward` were asked, by name; every process calls this."""
        spending = None if self.watch is None else self.watch.spending
        return {} if spending is None else spending.described()

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
                self.handle(step, finding)
        if watch is None or metrics is None or step in self.acted.values():
            return False  # weights that had to be acted upon are not the best
        if not watch.is_best(step, metrics):
            return False
        self.best_step = step
        return self.returns

    def handle(self, step: int, finding: Finding) -> None:
        """Do what is to be done about a finding: here it is said, once."""
        self.run.say(step, finding, once=True)

    def state(self) -> dict[str, Any]:
        """What goes on after an interruption, as JSON."""
        watch = {} if self.watch is None else self.watch.state()
        return {"best_step": self.best_step, "fresh": self.fresh, **watch}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; the history is what the run has logged."""
        self.best_step = state["best_step"]
        if self.watch is not None:
            self.watch.load_state(state)
        self.history = History()
        for record in self.run.read("metrics.jsonl"):
            self.note(record)
        self.fresh = state.get("fresh", False)
