"""What actions do over a run: each once for what is found, and again where that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from penchant.config.actions import parse_actions
from penchant.config.keys import load_config
from penchant.core.findings import Finding
from penchant.guards.monitors.acting import RETURNED, ActingSupervisor, acting
from penchant.guards.monitors.history import RunFacts
from penchant.guards.monitors.levers import Lever
from penchant.guards.monitors.supervisor import Supervisor
from penchant.training.folder import RunDirectory

STEPS = 100


class Coefficient:
    """What a controller of the divergence holds."""

    def __init__(self) -> None:
        self.value = 0.0

    def put(self, value: float) -> None:
        self.value = value


def watch(run: Path, divergences: Sequence[float]) -> list[float]:
    """The coefficient after each of a row of batches, with `drift` answered by `adapt`."""
    held = Coefficient()
    guard = ActingSupervisor(
        run=RunDirectory(run, {}, resume=False),
        facts=RunFacts(num_steps=STEPS, samples=True, strength="init_kl_coef"),
        actions=parse_actions("drift=adapt"),
        roll_back=lambda step: None,
        levers=lambda: [Lever("init_kl_coef", lambda: held.value, held.put, 1.0, 0.2)],
    )
    coefficients = []
    for number, nats in enumerate(divergences):
        step = 5 * (number + 1)
        guard.note({"step": step, "iteration": number, "kl/sequence": nats})
        guard.after(step, train_seconds=1.0)
        coefficients.append(held.value)
    return coefficients


def test_a_hold_that_works_is_not_made_stronger(tmp_path: Path) -> None:
    # The batch after the raise was sampled before it.
    assert watch(tmp_path / "run", [5, 17, 18, 22, 21, 19, 18, 17.5]) == [
        0,
        0,
        0.2,
        0.2,
        *[0.2] * 4,
    ]


def test_a_hold_that_does_not_work_is_doubled_in_time(tmp_path: Path) -> None:
    assert watch(tmp_path / "run", [5, 17, 18, 22, 25, 28, 31, 33]) == pytest.approx(
        [0, 0, 0.2, 0.2, 0.4, 0.4, 0.8, 0.8]
    )


def test_each_raise_is_recorded_with_its_reason(tmp_path: Path) -> None:
    watch(tmp_path / "run", [5, 17, 18, 22, 25])
    found = [json.loads(line) for line in (tmp_path / "run" / "findings.jsonl").open()]
    assert [(one["step"], one["id"], one["action"]) for one in found] == [
        (15, "drift", "adapt: init_kl_coef raised from 0 to 0.2"),
        (25, "drift", "adapt: init_kl_coef raised from 0.2 to 0.4"),
    ]


def test_a_method_that_nothing_holds_learns_more_slowly(tmp_path: Path) -> None:
    config = load_config("sft", {"model": "m", "data": "d", "on_finding": "collapse=adapt"})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    step = SimpleNamespace(scheduler=scheduler, objective=None)
    engine: Any = SimpleNamespace(step=step, source=None, checkpoints=None)
    watching = Supervisor(RunDirectory(tmp_path / "run", {}, resume=False), RunFacts(STEPS))
    setup: Any = SimpleNamespace(collector=None)
    guard = acting(watching, config, setup, engine)
    guard.handle(5, Finding("collapse", "warning", "answers are alike", "look"))
    assert scheduler.base_lrs == [0.005]


class Returning:
    """A run whose guard answers every finding by going back to step 10."""

    def __init__(self, run: Path) -> None:
        self.run = RunDirectory(run, {}, resume=run.exists())
        self.returns: list[int] = []
        self.guard = ActingSupervisor(
            run=self.run,
            facts=RunFacts(num_steps=STEPS),
            actions=parse_actions("rollback"),
            roll_back=self._back,
        )
        self.guard.best_step = 10

    def _back(self, target: int) -> None:
        self.returns.append(self.guard.history.step)
        self.log({"step": self.guard.history.step, RETURNED: target})

    def log(self, record: Mapping[str, Any]) -> None:
        self.run.append("metrics.jsonl", record)
        self.guard.note(record)

    def go(self, steps: range, answers: Mapping[int, Mapping[str, float]]) -> None:
        """Take steps, with what monitors say after some of them."""
        for step in steps:
            self.log({"step": step, "loss": 0.6})
            if step in answers:
                self.log({"step": step, **answers[step]})
            self.guard.after(step, train_seconds=1.0)


FAR = {"monitor/kl_sequence": 40.0, "monitor/distinct_2": 0.1}
NEAR = {"monitor/kl_sequence": 2.0, "monitor/distinct_2": 0.8}


def test_what_is_known_of_weights_that_are_gone_leads_to_no_second_return(tmp_path: Path) -> None:
    one = Returning(tmp_path / "run")
    one.go(range(1, 41), {10: NEAR, 20: FAR})  # drift, and a collapse beside it
    assert one.returns == [20]
    one.go(range(41, 60), {50: FAR})
    assert one.returns == [20, 50]


def test_a_return_is_known_after_an_interruption(tmp_path: Path) -> None:
    one = Returning(tmp_path / "run")
    one.go(range(1, 22), {10: NEAR, 20: FAR})
    again = Returning(tmp_path / "run")
    again.guard.load_state(json.loads(json.dumps(one.guard.state())))
    assert again.guard.history["monitor/kl_sequence"].values == [2.0]
    assert again.guard.history["loss"].steps == [*range(1, 11), 21]
    again.go(range(22, 60), {50: NEAR})
    assert again.returns == []


def test_what_was_logged_after_the_last_look_is_looked_at_after_an_interruption(
    tmp_path: Path,
) -> None:
    one = Returning(tmp_path / "run")
    one.go(range(1, 20), {10: NEAR})
    one.log({"step": 19, **FAR})  # as an evaluation, which follows the look
    again = Returning(tmp_path / "run")
    again.guard.load_state(json.loads(json.dumps(one.guard.state())))
    again.guard.after(20, train_seconds=1.0)
    assert again.returns == [19]
