"""Apply remedies: write the rows that remain, and those that went with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.audit.finding import Finding
from penchant.audit.patterns import CUES
from penchant.audit.report import Report
from penchant.core.errors import ConfigError
from penchant.core.screen import track
from penchant.data.faults import FAULTS
from penchant.data.opening import Sources
from penchant.data.records import DataError, Refusal, counted
from penchant.data.writing import SUFFIXES, RowWriter, new_file, require_new

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Cleaning:
    """What `clean` did.

    Attributes:
        source: what was read.
        dropped: rows by remedy; a row that several drop counts for each.
        kept, removed: rows of the two files.
        output, removals: the files.
    """

    source: str
    dropped: Mapping[str, int]
    kept: int
    removed: int
    output: Path
    removals: Path

    def summary(self) -> str:
        """Say in a few lines what went, why, and where it is."""
        total = counted(self.kept + self.removed, "row")
        lines = [f"kept {self.kept} of {total} of {self.source}: {self.output}"]
        lines += [f"  {name}: {counted(number, 'row')}" for name, number in self.dropped.items()]
        lines.append(f"{counted(self.removed, 'row')} removed, with the reasons: {self.removals}")
        return "\n".join(lines)


def removals_path(output: Path) -> Path:
    """Where removed rows go: `clean.removed.jsonl` for `clean.parquet`."""
    suffix = next((suffix for suffix in SUFFIXES if output.name.endswith(suffix)), "")
    return output.with_name(f"{output.name.removesuffix(suffix)}.removed.jsonl")


def require_outputs(output: Path) -> None:
    """Refuse an output that exists or whose name says no format, before anything is read."""
    require_new(output)
    require_new(removals_path(output))


def drop_rows(report: Report, sources: Sources, drop: Sequence[str], output: Path) -> Cleaning:
    """Read the sources again, and write each row to one of two new files.

    Raises:
        ConfigError: no remedy of that name drops rows.
        DataError: nothing would remain, or a file cannot be written.
    """
    reasons = _reasons(report, drop)
    counts = dict.fromkeys(drop, 0)
    rows = (item for part in sources.parts for item in part.rows(None))
    with new_file(removals_path(output)) as removed, new_file(output) as kept:
        for number, item in enumerate(track(rows, f"writing {output}", len(report.places))):
            why = [name for name, mask in reasons.items() if mask[number]]
            if isinstance(item, Refusal) and not why:
                why = [UNREADABLE]
            for name in why:
                counts[name] = counts.get(name, 0) + 1
            _write(item, why, kept, removed)
        if not kept.count:
            raise DataError(
                f"nothing of {report.source} would remain; leave out some of {', '.join(drop)}"
            )
        return Cleaning(report.source, counts, kept.count, removed.count, output,
                        removals_path(output))  # fmt: skip


def _write(item: Any, why: Sequence[str], kept: RowWriter, removed: RowWriter) -> None:
    if isinstance(item, Refusal):
        removed.write({"where": item.where, "drop": why, "row": None, "detail": str(item)})
        return
    where, row = item
    if why or not isinstance(row, Mapping):
        removed.write({"where": where, "drop": why or [UNREADABLE], "row": row})
    else:
        kept.write(row)


def _reasons(report: Report, drop: Sequence[str]) -> dict[str, Any]:
    """By remedy, which rows it drops."""
    known = {one.id: one for one in report.findings}
    parts = {name: rows for one in report.findings for name, rows in one.parts.items()}
    reasons = {}
    for name in drop:
        mask = np.zeros(len(report.places), np.bool_)
        if name in known:
            mask[_rows(known[name])] = True
        elif name in parts:
            mask[parts[name]] = True
        elif name not in REMEDIES:
            droppable = [one.id for one in report.findings if one.droppable]
            can = ", ".join([*droppable, *parts]) or "nothing"
            raise ConfigError(f"no remedy is called {name!r}; for these data there are: {can}")
        reasons[name] = mask
    return reasons


def _rows(finding: Finding) -> Any:
    if finding.rows.size and finding.sampled:
        raise ConfigError(
            f"{finding.id} was looked for in a sample of the rows only; set --sample to at least "
            "the number of rows, as memory allows"
        )
    return finding.rows


# Known to every file, also to one where they find nothing: a script need not look first.
REMEDIES = frozenset(
    (
        *FAULTS, "length-bias", "label-noise", "mixed-languages", "prompts-cut",
        "answers-cut", *(f"cue-{name}" for name in CUES),
        # Reasons of refusals.
        "chosen-equals-rejected", "empty-completion", "empty-prompt", "unknown-label",
        "missing-field", "wrong-type", "malformed-json", "invalid-utf-8", "invalid-text",
        "mixed-formats", "negative-margin", "compressed-file-cut-off", "too-many-cells",
        "not-a-transcript", "no-shared-prompt", "prompt-mismatch", "unknown-role", "tool-calls",
    )
)  # fmt: skip
