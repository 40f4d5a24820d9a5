"""What a run's history says about it: every detector, run one by one.

A detector is a pure function of a history and of a few facts of the run. It returns a finding
while what it looks for holds at the latest record, and None otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from penchant.core.findings import Finding
from penchant.guards.monitors.detectors_training import (
    clip_fraction_high,
    falling_chosen,
    gradient_spike,
    loss_spike,
    over_fitting,
    reward_model_past_best,
    value_loss_exploding,
)
from penchant.guards.monitors.history import History, RunFacts

Detector = Callable[[History, RunFacts], Finding | None]

OF_TRAINING: Mapping[str, Detector] = {
    "falling-chosen": falling_chosen,
    "over-fitting": over_fitting,
    "reward-model-past-best": reward_model_past_best,
    "value-loss-exploding": value_loss_exploding,
    "clip-fraction-high": clip_fraction_high,
    "loss-spike": loss_spike,
    "gradient-spike": gradient_spike,
}


def all_detectors() -> Mapping[str, Detector]:
    """Every detector, by the id of what it finds."""
    from penchant.guards.monitors.detectors_answers import OF_ANSWERS

    return {**OF_ANSWERS, **OF_TRAINING}


def detect(
    history: History,
    facts: RunFacts,
    *,
    silenced: Iterable[str] = (),
    detectors: Mapping[str, Detector] | None = None,
) -> Iterator[Finding]:
    """Run every detector that is not silenced.

    A detector that raises is a finding itself: a guard must not end the run that it guards.

    Args:
        history: of the run so far.
        facts: of the run.
        silenced: ids that are not looked for.
        detectors: by the id of what they find; default: all that the history has metrics for.
    """
    if detectors is None:
        detectors = all_detectors() if history.tells_of_answers else OF_TRAINING
    for name, detector in detectors.items():
        if name in silenced:
            continue
        try:
            finding = detector(history, facts)
        except Exception as error:  # whatever it is, it is reported below
            finding = failed(name, error)
        if finding is not None:
            yield finding


def failed(name: str, error: Exception) -> Finding:
    """What to say of a detector that raised."""
    return Finding(
        id="detector-failed",
        severity="warning",
        what=f"the detector {name} failed: {type(error).__name__}: {error}; the run goes on",
        remedy=f"report it; silence: {name} switches it off",
        evidence={"detector": name, "error": f"{type(error).__name__}: {error}"},
    )
