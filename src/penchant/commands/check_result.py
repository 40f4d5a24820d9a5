"""What `penchant.check` found; importing it costs nothing that a refusal does not need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError, ModelError, RewardError, TrainingError, UserError
from penchant.core.findings import SEVERITIES, Finding
from penchant.data.records import DataError

if TYPE_CHECKING:
    from penchant.guards.checks.preview import Preview
    from penchant.guards.estimate.estimate import RunEstimate
    from penchant.rl.rewards.trial import Trial

# A mistake that stops a run before there is anything to check, by its kind.
STOPPED: tuple[tuple[type[UserError], str], ...] = (
    (DataError, "data"),
    (ModelError, "model"),
    (ConfigError, "configuration"),
    (RewardError, "reward"),
    (TrainingError, "output"),
)


@dataclass(frozen=True)
class CheckResult:
    """What a run would meet.

    Attributes:
        method: that was checked.
        findings: errors first, without what is silenced.
        preview: the first record by token; None where data or tokenizer could not be read.
        estimate: memory and time; None where an error came first.
        trials: what the rewards pay for a few answers, for methods that sample.
        path: which way the model would be scored and why, by heading; empty where an error came
            first.
    """

    method: str
    findings: list[Finding]
    preview: Preview | None = None
    estimate: RunEstimate | None = None
    trials: Sequence[Trial] = ()
    path: Sequence[tuple[str, str]] = ()

    @property
    def errors(self) -> list[Finding]:
        """Those that would make the run wrong."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        severities = [finding.severity for finding in self.findings]
        return {severity: severities.count(severity) for severity in SEVERITIES}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "counts": self.counts(),
            "findings": [{**asdict(finding), "docs": finding.docs} for finding in self.findings],
            "preview": None if self.preview is None else self.preview.as_dict(),
            "trials": [asdict(trial) for trial in self.trials],
            "path": dict(self.path),
            "estimate": None if self.estimate is None else _described(self.estimate),
        }


def _described(estimate: RunEstimate) -> dict[str, Any]:
    """An estimate with what follows from its numbers, for JSON."""
    derived = {"peak_bytes": estimate.peak_bytes, "needed_bytes": estimate.needed_bytes,
               "seconds": estimate.seconds, "fits": estimate.fits}  # fmt: skip
    return {**asdict(estimate), **derived}


def stopped(error: UserError) -> Finding:
    """The finding that a mistake is; by our convention its fix stands after the last semicolon."""
    name = next(name for kind, name in STOPPED if isinstance(error, kind))
    said = str(error)
    what, semicolon, remedy = said.rpartition("; ")
    return Finding(name, "error", what if semicolon else said, remedy if semicolon else "see above")
