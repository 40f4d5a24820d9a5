"""The finding that some of the records have a fault: graver, the more of them have it."""

from __future__ import annotations

from collections.abc import Iterator

from penchant.core.findings import Finding, Severity
from penchant.data.records import counted

MANY = 0.05  # share of records from which a fault costs more than a note


def severity(share: float, many: float = MANY) -> Severity:
    """A warning where more than `many` of the records have the fault, else a note."""
    return "warning" if share > many else "note"


def some(
    name: str, noun: str, num: int, total: int, fault: str, remedy: str, *, many: float = MANY
) -> Iterator[Finding]:
    """A finding where `num` of `total` records have a fault; nothing where none has.

    Args:
        name: the finding's id.
        noun: what is counted, in the singular.
        num, total: records with the fault, and all of them.
        fault: what follows "3 pairs (1.5%)".
        remedy: what to do.
        many: share above which it is a warning.
    """
    if num:
        share = num / total
        what = f"{counted(num, noun)} ({share:.1%}) {fault}"
        yield Finding(name, severity(share, many), what, remedy, {"num": num, "share": share})
