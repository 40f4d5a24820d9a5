"""What a guard finds: an id, how bad it is, the numbers, what to do, and where to read more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
DOCS = "docs/guards.md"


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
    evidence: Mapping[str, Any] = field(default_factory=dict)
    action: str = ""

    @property
    def docs(self) -> str:
        """Where it is explained."""
        return f"{DOCS}#{self.id}"

    def __str__(self) -> str:
        return f"{self.id}: {self.what}; {self.remedy}"

    def record(self, step: int) -> dict[str, Any]:
        """One line of `findings.jsonl`."""
        values = {"step": step, "id": self.id, "severity": self.severity, "what": self.what}
        more = {"remedy": self.remedy, "evidence": dict(self.evidence), "docs": self.docs}
        return {**values, **more, **({"action": self.action} if self.action else {})}
