"""What is wrong with a run before it starts: pure rules over a snapshot of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from penchant.guards.checks import optimization, preferences, sampling, tokens
from penchant.guards.checks.snapshot import Snapshot
from penchant.guards.finding import SEVERITIES, Finding

Rule = Callable[[Snapshot], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    *optimization.RULES,
    *preferences.RULES,
    *tokens.RULES,
    *sampling.RULES,
)


def check_snapshot(run: Snapshot) -> list[Finding]:
    """What every rule finds, errors first; nothing is silenced."""
    return by_severity(finding for rule in RULES for finding in rule(run))


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
