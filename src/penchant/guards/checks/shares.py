"""The finding that some of the records have a fault: graver, the more of them have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penchant.core.findings import Finding, Severity
from penchant.data.records import counted

MANY = 0.05  # share of records from which a fault costs more than a note


def severity(share: float, many: float = MANY) -> Severity:
    """A warning where more than `many` of the records have the fault, else a note."""
    return "warning" if share > many else "note"


@dataclass(frozen=True)
class Share:
    """How many records of one sort have a fault.

    Attributes:
        noun: what is counted, in the singular.
        num: those with the fault.
        total: all of them.
    """

    noun: str
    num: int
    total: int

    def has(self, name: str, fault: str, remedy: str, *, many: float = MANY) -> Iterator[Finding]:
        """A finding where some of the records have the fault; nothing where none has.

        Args:
            name: the finding's id.
            fault: what follows "3 pairs (1.5%)".
            remedy: what to do.
            many: share above which it is a warning.
        """
        if self.num:
            share = self.num / self.total
            what = f"{counted(self.num, self.noun)} ({share:.1%}) {fault}"
            numbers = {"num": self.num, "share": share}
            yield Finding(name, severity(share, many), what, remedy, numbers)
