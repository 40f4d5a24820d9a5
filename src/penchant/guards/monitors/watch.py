"""Answers to held-out prompts at their time: what they cost, what they say, which were the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.evaluation import BOUNDED_KL
from penchant.core.findings import Finding
from penchant.core.timing import seconds_of
from penchant.data.batch import laid_out
from penchant.guards.monitors.everywhere import OutOfStepError, everywhere
from penchant.training.kind import kind_of

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.guards.monitors.monitor import Monitor
    from penchant.guards.monitors.pace import Pace
    from penchant.rl.rewards.spending import Spending
    from penchant.training.folder import RunDirectory
    from penchant.training.setup import Setup

# A training step beside a scoring pass of the same tokens: forward, and twice that backward.
TRAINING_PASSES = 3.0


@dataclass
class Watch:
    """Lets the policy answer held-out prompts during a run.

    Attributes:
        run: where findings and answers are written.
        monitor: None once it has failed, or has been found too slow.
        pace: when it looks.
        log: writes a record of metrics.
        run_seconds: a prediction of the run's time.
        start: the rewards of the starting model's answers.
        best: what the best check is ranked by; None before there is one.
        spending: what judges that the run is not trained on are asked; None without one.
    """

    run: RunDirectory
    monitor: Monitor | None
    pace: Pace
    log: Callable[[Mapping[str, Any]], None]
    run_seconds: Callable[[], float]
    start: list[float] = field(default_factory=list)
    best: tuple[float, float] | None = None
    spending: Spending | None = None

    def begin(self) -> bool:
        """Let the starting model answer; tells whether that is the best check so far."""
        if self.monitor is None:
            return False
        try:
            expected = self._expected_seconds()
            # A pass of sharded weights is one of all processes.
            sharded = self.monitor.scorer.is_sharded
            whole = everywhere(self.run.team, self.run_seconds, in_step=sharded)
            whole = self.run.team.agree(whole)
        except OutOfStepError:
            raise
        except Exception as error:
            self._give_up(0, error)
            return False
        if self.pace.too_slow(expected, whole):
            self.monitor = None
            self.run.say(0, _too_slow(expected, whole, self.pace.share))
            return False
        metrics = self._check(0)
        return metrics is not None and self.is_best(0, metrics)

    def look(self, step: int, train_seconds: float) -> dict[str, float] | None:
        """What the answers after a step say; None where it is not time to look.

        Args:
            step: that is done.
            train_seconds: that all steps took so far.
        """
        if self.monitor is None or not self.pace.due(step, train_seconds):
            return None
        return self._check(step)

    def is_best(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether a check is the best so far: reward at bounded KL; without a reward the last."""
        if metrics.get("monitor/kl_sequence", 0.0) > BOUNDED_KL:
            return False
        rank = (metrics.get("monitor/reward", 0.0), float(step))
        if self.best is not None and rank <= self.best:
            return False
        self.best = rank
        return True

    def _check(self, step: int) -> dict[str, float] | None:
        """What the answers to the held-out prompts say; None where that failed."""
        assert self.monitor is not None
        try:
            checked = self.monitor.check(self.start)
        except OutOfStepError:
            raise
        except Exception as error:
            self._give_up(step, error)
            return None
        if step == 0:
            self.start = checked.judged
        if checked.unjudged:
            self.run.say(step, _unjudged(checked.unjudged, len(checked.answers)), once=True)
        self.pace.spent(step, checked.metrics["monitor/seconds"])
        self.log({"step": step, **checked.metrics})
        for answer in checked.answers:
            self.run.append("monitor.jsonl", {"step": step, **answer})
        return checked.metrics

    def _expected_seconds(self) -> float:
        """Of a check, from one with a sixteenth of the tokens."""
        assert self.monitor is not None
        few = max(1, self.monitor.sampling.max_completion_length // 16)
        short = replace(self.monitor.sampling, max_completion_length=few)
        began = time.perf_counter()
        replace(self.monitor, sampling=short).check()
        seconds = self.run.team.agree(time.perf_counter() - began)
        return seconds * self.monitor.sampling.max_completion_length / few / 2

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
            "best": self.best,
            "start": self.start,
            "monitoring": self.monitor is not None,
            **({} if self.spending is None else {"asked": self.spending.state()}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; a run that began without monitors goes on without."""
        if not state.get("monitoring"):
            self.monitor = None
        if self.spending is not None:
            self.spending.load_state(state.get("asked", {}))
        if "pace" in state:
            self.pace.load_state(state["pace"])
            self.best = tuple(state["best"]) if state["best"] else None
            self.start = list(state["start"])


@torch.no_grad()
def predicted_seconds(config: RunConfig, setup: Setup, num_steps: int) -> float:
    """A prediction of a run's time, from one scoring pass of its first examples.

    Sampling is not counted: methods that sample take longer than this.
    """
    scorer, size = setup.scorer, config.per_device_train_batch_size
    groups = kind_of(config.spec).groups(config, setup.train_set[:size])
    every = sum(group.num_tokens for group in groups)
    limit = config.max_tokens_per_batch
    while (
        isinstance(limit, int)
        and len(groups) > 1
        and laid_out(groups, layout=scorer.plan.layout) > limit
    ):
        groups.pop()
    with scorer.evaluating():
        batch = scorer.batch(groups)
        scorer(batch)
        seconds, _ = seconds_of(lambda: scorer(batch), scorer.device)
    seconds *= every / sum(group.num_tokens for group in groups)
    return seconds * TRAINING_PASSES * config.gradient_accumulation_steps * num_steps


def _unjudged(number: int, of: int) -> Finding:
    return Finding(
        id="monitor-reward-dropped",
        severity="warning",
        what=f"{number} of {of} monitored answers have no reward and are left out of what is said "
        "of their rewards",
        remedy="correct the reward for such answers; they are null in monitor.jsonl",
        evidence={"dropped": number},
    )


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
