"""The metrics of a run so far, by name: what detectors read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

# Nats an answer: a policy that has learnt and still is itself.
HEALTHY_KL = (0.5, 10.0)
# Beyond it answers are no longer the reference's with another taste, but another model's.
DRIFTED_KL = 15.0
# Batches of answers that are averaged: one odd batch must not raise an alarm.
BATCHES = 3


@dataclass
class Series:
    """One metric: the steps it was logged at, and its values, which are finite."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def first(self) -> float:
        """The earliest value; there must be one."""
        return self.values[0]

    @property
    def last(self) -> float:
        """The latest value; there must be one."""
        return self.values[-1]

    def early(self, count: int) -> float:
        """Mean of the first `count` values."""
        return fmean(self.values[:count])

    def late(self, count: int) -> float:
        """Mean of the last `count` values."""
        return fmean(self.values[-count:])

    def late_median(self, count: int) -> float:
        """Median of the last `count` values: one odd batch does not move it."""
        return median(self.values[-count:])


EMPTY = Series()


class History:
    """Records as `metrics.jsonl` holds them, by metric.

    What is not a finite number is left out. A batch of sampled answers is trained on several
    times, and its metrics are logged every time: they enter once.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.step = 0
        self.returned = 0  # the step at which earlier weights were put back; 0: never
        self.series: dict[str, Series] = {}
        self._iteration: float | None = None
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one record; it has a `step`."""
        self.step = max(self.step, int(record["step"]))
        iteration = record.get("iteration")
        again = iteration is not None and iteration == self._iteration
        if iteration is not None:
            self._iteration = iteration
        for name, value in record.items():
            if name == "step" or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            series = self.series.setdefault(name, Series())
            if again and series.values and series.last == value:
                continue
            series.steps.append(int(record["step"]))
            series.values.append(float(value))

    def __getitem__(self, name: str) -> Series:
        """A metric's series; empty where it was never logged."""
        return self.series.get(name, EMPTY)

    def __contains__(self, name: str) -> bool:
        return name in self.series

    @property
    def tells_of_answers(self) -> bool:
        """Whether any metric is of answers that the policy sampled."""
        monitored = any(name.startswith("monitor/") for name in self.series)
        return monitored or "kl/sequence" in self or "reward/mean" in self


@dataclass(frozen=True)
class RunFacts:
    """Of one run.

    Attributes:
        num_steps: optimizer steps in all.
        samples: whether the method samples its own answers.
        scores: whether a score head is trained (reward models).
        strength: the key that holds the policy near the reference, such as `beta`; empty where
            the method has none.
        sft: the key that adds a supervised term on the chosen answers; empty likewise.
        beta: the factor from log-ratios in nats to implicit rewards; None where there is none.
        taught: whether the policy is to become like a teacher, away from what it was.
    """

    num_steps: int
    samples: bool = False
    scores: bool = False
    strength: str = ""
    sft: str = ""
    beta: float | None = None
    taught: bool = False

    @property
    def hold(self) -> str:
        """What to do to stay nearer to the reference."""
        return f"raise {self.strength}" if self.strength else "lower learning_rate"


@dataclass(frozen=True)
class Divergence:
    """The latest divergence from the reference, in nats per answer, and its standard error."""

    value: float
    error: float
    metric: str


def divergence(history: History) -> Divergence | None:
    """The latest known divergence: of monitored answers, or of those trained on if later."""
    monitored, trained = history["monitor/kl_sequence"], history["kl/sequence"]
    if trained and (not monitored or trained.steps[-1] >= monitored.steps[-1]):
        errors = history["kl/sequence_error"]
        error = errors.late(BATCHES) / BATCHES**0.5 if errors else 0.0
        return Divergence(trained.late_median(BATCHES), error, "kl/sequence")
    if monitored:
        errors = history["monitor/kl_error"]
        return Divergence(monitored.last, errors.last if errors else 0.0, "monitor/kl_sequence")
    return None
