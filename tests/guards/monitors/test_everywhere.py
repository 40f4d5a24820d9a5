"""Work that each process does for itself: what fails in one is known to all, or ends the run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penchant.core.errors import TrainingError
from penchant.core.team import ALONE, Team
from penchant.guards.monitors.everywhere import OutOfStepError, everywhere
from penchant.guards.monitors.monitor import Monitor, MonitoredPrompt
from penchant.guards.monitors.pace import Pace
from penchant.guards.monitors.watch import Watch
from penchant.training.folder import RunDirectory


@dataclass(frozen=True)
class Heard(Team):
    """A process of two whose other one gathers a value of its own."""

    other: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other] if self.leads else [self.other, value]

    def agree(self, value: Any) -> Any:
        return value


def fails() -> float:
    raise RuntimeError("no room")


def test_what_fails_in_one_process_is_raised_in_every_one() -> None:
    assert everywhere(Heard(0, 2, other=""), lambda: 3) == 3
    with pytest.raises(TrainingError, match="process 1: RuntimeError: no room"):
        everywhere(Heard(0, 2, other="RuntimeError: no room"), lambda: 3)
    with pytest.raises(RuntimeError, match="no room"):
        everywhere(Heard(1, 2, other=""), fails)
    with pytest.raises(RuntimeError, match="no room"):
        everywhere(ALONE, fails, in_step=True)


def test_what_fails_while_others_wait_in_it_is_not_told_but_ends_the_process() -> None:
    class Deaf(Team):
        def gather(self, value: Any) -> list[Any]:
            raise AssertionError("the others are elsewhere")

    with pytest.raises(OutOfStepError, match="in process 1, in step with the others"):
        everywhere(Deaf(1, 2), fails, in_step=True)


@pytest.mark.parametrize(("shares", "raised"), [(False, RuntimeError), (True, OutOfStepError)])
def test_a_failed_reward_ends_a_divided_run_only_where_rewards_use_its_weights(
    monkeypatch: pytest.MonkeyPatch, shares: bool, raised: type[Exception]
) -> None:
    policy, sampler = SimpleNamespace(is_sharded=True), SimpleNamespace(sync=lambda: None)
    judge = SimpleNamespace(rewards=[fails], shares_policy=False)
    trained_on = SimpleNamespace(rewards=[fails], shares_policy=shares)
    given: Any = (policy, None, sampler, None, None, trained_on, judge, 1, nullcontext)
    monkeypatch.setattr(Monitor, "_answered", lambda *_: ([], {}))
    monkeypatch.setattr(Monitor, "_rewarded", lambda *_: fails())
    prompts = [MonitoredPrompt([1], "a", {}, "list:1")]
    with pytest.raises(Exception, match="no room") as error:
        Monitor(prompts, *given, team=Heard(1, 2, other="")).check()
    assert error.type is raised


@pytest.mark.parametrize(("rank", "other"), [(0, "RuntimeError: no room"), (1, "")])
def test_a_run_whose_time_one_process_cannot_tell_has_no_monitor_in_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, other: str
) -> None:
    run = RunDirectory(tmp_path / "run", {}, resume=False)
    run.team = Heard(rank, 2, other=other)
    seconds = fails if rank else lambda: 1.0
    monitor: Any = SimpleNamespace(scorer=SimpleNamespace(is_sharded=False))
    watch = Watch(run, monitor, Pace(8, None, 0.1), lambda _: None, seconds)
    monkeypatch.setattr(watch, "_expected_seconds", lambda: 0.001)
    assert not watch.begin()
    assert watch.monitor is None
