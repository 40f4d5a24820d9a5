"""What a guard finds: an id, how bad it is, the numbers, what to do, and where to read more."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from penchant.core.commands import typeable
from penchant.core.errors import ConfigError

Severity = Literal["error", "warning", "note"]
Evidence = Mapping[str, Any]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}


@dataclass(frozen=True)
class Finding:
    """One mistake, danger or fact.

    Attributes:
        id: a stable name, by which it is silenced.
        severity: error where a run would be wrong or would fail, warning where it probably costs,
            note where it is only worth knowing.
        what: one sentence with its numbers.
        remedy: what to do, with the keys to set.
        evidence: the numbers behind it, as JSON.
        action: what was done about it during a run, with its reason; empty where nothing was.
    """

    id: str
    severity: Severity
    what: str
    remedy: str
    evidence: Evidence = field(default_factory=dict)
    action: str = ""

    @property
    def docs(self) -> str:
        """The command that explains it."""
        return typeable(f"penchant explain {self.id}")

    def __str__(self) -> str:
        done = f" [{self.action}]" if self.action else ""
        return typeable(f"{self.id}: {self.what}; {self.remedy}{done}")

    def record(self, step: int) -> dict[str, Any]:
        """One line of `findings.jsonl`."""
        values = {"step": step, "id": self.id, "severity": self.severity, "what": self.what}
        more = {"remedy": self.remedy, "evidence": dict(self.evidence), "docs": self.docs}
        return {**values, **more, **({"action": self.action} if self.action else {})}


def warning(name: str, what: str, remedy: str, evidence: Evidence | None = None) -> Finding:
    """A finding that probably costs something."""
    return Finding(name, "warning", what, remedy, evidence or {})


def note(name: str, what: str, remedy: str, evidence: Evidence | None = None) -> Finding:
    """A finding that is only worth knowing."""
    return Finding(name, "note", what, remedy, evidence or {})


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, notes last; otherwise in the order given."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def silenced(text: str) -> frozenset[str]:
    """The ids in the configuration's `silence`."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def spoken(findings: Iterable[Finding], silence: str) -> list[Finding]:
    """The findings that the user has not silenced by their ids."""
    quiet = silenced(silence)
    return [finding for finding in findings if finding.id not in quiet]


def refuse_errors(findings: Iterable[Finding]) -> None:
    """Stop a run that would be wrong.

    Raises:
        ConfigError: some finding is an error.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    said = "\n".join(map(str, errors))
    ids = ",".join(dict.fromkeys(one.id for one in errors))
    raise ConfigError(f"{said}\nif it is meant so, --silence {ids} trains all the same")


BEFORE = (
    "configuration", "data", "model", "reward", "output", "learning-rate", "beta", "beta-noise",
    "reward-epochs", "epochs", "warmup", "fp16-of-bf16", "dropout", "lora-dropout", "ties",
    "white-space", "stand-in-answers", "low-agreement", "split-votes", "zero-margin", "duplicates",
    "near-duplicates", "contradictions", "cycles", "personal-data", "template-leftovers",
    "media-marks", "leaks", "near-leaks",
    "label-noise", "length-bias", "no-held-out", "few-records", "one-prompt", "refused-rows",
    "kto-imbalance", "prompts-cut", "answers-cut", "answer-room", "dropped-records", "context",
    "double-bos", "doubled-eos", "early-eos", "missing-eos", "pad-is-eos", "chat-as-text",
    "template-drops-text", "template-rewrites-turns", "template-kwargs-unread",
    "generation-prompt", "not-instruction-tuned", "second-reference", "reference-differs",
    "reference-differs-at-start", "reward-normalization", "no-kl-penalty", "target-kl",
    "reward-setup", "memory", "bf16-emulated",
)  # fmt: skip
# What a detector looks for in a run's history, so that an action may follow.
DETECTED = (
    "reward-hacking", "drift", "no-learning", "collapse", "falling-chosen", "over-fitting",
    "reward-model-past-best", "value-loss-exploding", "clip-fraction-high", "loss-spike",
    "gradient-spike",
)  # fmt: skip
DURING = (
    *DETECTED, "no-held-out-prompts", "start-not-at-hand", "monitor-too-slow", "monitor-failed",
    "detector-failed", "not-finite", "out-of-memory", "reward-constant",
    "nothing-left-to-learn", "reward-dropped", "monitor-reward-dropped", "reward-scale",
    "never-ends", "kl-negative", "sampling-mismatch", "other-engine",
)  # fmt: skip
IDS = (*BEFORE, *DURING)


def require_known(silence: str) -> None:
    """Refuse an id that no finding has: silencing it would do nothing.

    Args:
        silence: ids, comma-separated.

    Raises:
        ValueError: an unknown id; the nearest known ones are named.
    """
    for name in filter(None, (part.strip() for part in silence.split(","))):
        if name not in IDS:
            raise ValueError(f"silence: unknown finding {name!r}; {nearest_ids(name)}")


def nearest_ids(name: str) -> str:
    """The ids most like a name, as a question; where none is, all of them."""
    close = difflib.get_close_matches(name, IDS, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(IDS)}"
