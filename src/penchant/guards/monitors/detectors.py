"""What a run's history says about it: every detector, run one by one.

A detector is a pure function of a history and of a few facts of the run. It returns a finding
while what it looks for holds at the latest record, and None otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from penchant.core.findings import Finding
from penchant.guards.monitors.detectors_answers import collapse, drift, no_learning, reward_hacking
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

DETECTORS: Mapping[str, Detector] = {
    "reward-hacking": reward_hacking,
    "drift": drift,
    "no-learning": no_learning,
    "collapse": collapse,
    "falling-chosen": falling_chosen,
    "over-fitting": over_fitting,
    "reward-model-past-best": reward_model_past_best,
    "value-loss-exploding": value_loss_exploding,
    "clip-fraction-high": clip_fraction_high,
    "loss-spike": loss_spike,
    "gradient-spike": gradient_spike,
}


def detect(
    history: History,
    facts: RunFacts,
    *,
    silenced: Iterable[str] = (),
    detectors: Mapping[str, Detector] = DETECTORS,
) -> Iterator[Finding]:
    """Run every detector that is not silenced.

    A detector that raises is a finding itself: a guard must not end the run that it guards.

    Args:
        history: of the run so far.
        facts: of the run.
        silenced: ids that are not looked for.
        detectors: by the id of what they find.
    """
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
