"""The guard of a run that acts on what it finds: it holds harder, goes back, or ends the run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from penchant.config.actions import Actions, parse_actions
from penchant.core.evaluation import BOUNDED_KL
from penchant.core.findings import Finding
from penchant.guards.monitors.history import History, Series, divergence
from penchant.guards.monitors.levers import Lever, length_lever, rate_lever, strength_lever
from penchant.guards.monitors.supervisor import Supervisor
from penchant.training.restoring import roll_back

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.training.engine import Engine
    from penchant.training.setup import Setup

# Returns to the best checkpoint in one run: what fails thrice will fail again.
ROLLBACKS = 3
# Share of the run, and steps at least, that an action is given to show before the next.
PATIENCE, PATIENCE_STEPS = 0.03, 4
# Readings of the divergence that a stronger hold is given: the first may be of earlier answers.
READINGS = 2
# Logged when earlier weights are put back: the step that they are of.
RETURNED = "returned_to"


@dataclass(kw_only=True)
class ActingSupervisor(Supervisor):
    """Watches a run, and acts on the findings that `on_finding` asks to act on.

    Attributes:
        actions: what findings do.
        roll_back: puts the weights of a step's checkpoint back, and logs `RETURNED`.
        levers: what `adapt` turns, the same at every call: the hold on the reference, where the
            method has one, and the learning rate.
        length: the same of the price of length, for a mean length at the start.
    """

    actions: Actions
    roll_back: Callable[[int], None]
    levers: Callable[[], Sequence[Lever]] = tuple
    length: Callable[[int], Lever] | None = None
    rollbacks: int = 0
    adapted: dict[str, float] = field(default_factory=dict)
    raised_at: int | None = None

    def __post_init__(self) -> None:
        self.returns = self.actions.wants("rollback")

    def note(self, record: Mapping[str, Any]) -> None:
        """Take in what was logged; after a return nothing that tells of the weights that went."""
        super().note(record)
        if RETURNED in record:
            forget(self.history, int(record[RETURNED]))

    def handle(self, step: int, finding: Finding) -> None:
        """Say a finding, or act on it, where an earlier action has had its time to show."""
        action = self.actions.of(finding.id)
        if action == "warn":
            super().handle(step, finding)
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
        return super().state() | {
            "stopped": self.stopped,
            "acted": self.acted,
            "rollbacks": self.rollbacks,
            "adapted": self.adapted,
            "raised_at": self.raised_at,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        super().load_state(state)
        self.stopped, self.acted = state["stopped"], dict(state["acted"])
        self.rollbacks, self.adapted = state["rollbacks"], dict(state["adapted"])
        self.raised_at = state["raised_at"]
        for lever in self.levers() if self.adapted else ():
            if lever.name in self.adapted and not lever.kept:
                lever.put(self.adapted[lever.name])
        if self.length is not None and "length_penalty" in self.adapted:
            lever = self.length(round(self.history["monitor/length"].first))
            lever.put(self.adapted["length_penalty"])


def forget(history: History, since: int) -> None:
    """Leave out what was logged after a step: it tells of weights that are gone."""
    history.returned = history.step
    for name, series in list(history.series.items()):
        kept = bisect_right(series.steps, since)
        if kept:
            history.series[name] = Series(series.steps[:kept], series.values[:kept])
        else:
            del history.series[name]


def acting(supervisor: Supervisor, config: RunConfig, setup: Setup, engine: Engine) -> Supervisor:
    """A guard that acts on a run, in place of one that watches it; that one if none is to act."""
    actions = parse_actions(config.on_finding)
    if not actions.acts:
        return supervisor
    strength, first_rate = supervisor.facts.strength, engine.step.scheduler.base_lrs[0]

    @cache
    def levers() -> list[Lever]:
        rate = rate_lever(engine.step.scheduler, first_rate)
        if not strength:  # nothing holds the policy, and there may be no number to turn
            return [rate]
        objective = engine.step.objective
        return [strength_lever(strength, config.options, objective, engine.source), rate]

    def put_back(number: int) -> None:
        roll_back(engine.checkpoints, number)
        engine.log({"step": engine.progress.step, RETURNED: number})

    rewards = None if setup.collector is None else setup.collector.rewards
    return ActingSupervisor(
        run=supervisor.run,
        facts=supervisor.facts,
        actions=actions,
        watch=supervisor.watch,
        roll_back=put_back,
        levers=levers,
        length=None if rewards is None else partial(length_lever, rewards),
    )
