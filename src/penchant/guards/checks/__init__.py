"""What is wrong with a run before it starts: pure rules over a snapshot of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from penchant.core.findings import Finding, by_severity
from penchant.guards.checks import optimization, preferences, sampling, tokens
from penchant.guards.checks.snapshot import Snapshot

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
