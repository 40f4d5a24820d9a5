"""What is wrong with a run before it starts: pure rules over a snapshot of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from penchant.core.findings import Finding, by_severity
from penchant.guards.checks import optimization, preferences, tokens
from penchant.guards.checks.snapshot import Snapshot

Rule = Callable[[Snapshot], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    *optimization.RULES,
    *preferences.RULES,
    *tokens.RULES,
)


def rules_for(run: Snapshot) -> tuple[Rule, ...]:
    """The rules of every run, and those of methods that sample where this is one of them."""
    if not run.config.spec.samples:
        return RULES
    from penchant.guards.checks import sampling

    return (*RULES, *sampling.RULES)


def check_snapshot(run: Snapshot) -> list[Finding]:
    """What every rule finds, errors first; nothing is silenced."""
    return by_severity(finding for rule in rules_for(run) for finding in rule(run))
