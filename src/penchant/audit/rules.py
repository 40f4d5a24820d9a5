"""Faults of single rows and of rows against each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.audit.facts import PROMPT, REFUSED
from penchant.audit.finding import Finding
from penchant.audit.graphs import in_cycles, opposed
from penchant.audit.scan import Scan
from penchant.data.faults import ALIKE, FAULTS, MIN_AGREEMENT, Count, Fault, fault_of
from penchant.data.near import ALIKE_PROMPTS, Indices, combined, near_repeats
from penchant.data.near_leaks import near_to_others
from penchant.data.patterns import LEFTOVERS, MEDIA_MARKS, PERSONAL


def row_faults(scanned: Scan, min_agreement: float = MIN_AGREEMENT) -> list[Finding]:
    """Everything that one source shows by itself, whatever its texts mean."""
    rules = (
        ties(scanned),
        refusals(scanned),
        strengths(scanned, min_agreement),
        repeats(scanned),
        contradictions(scanned),
        texts(scanned),
    )
    return [finding for rule in rules for finding in rule]


def ties(scanned: Scan) -> Iterator[Finding]:
    """Rows without a preference."""
    rows = scanned.ties
    count = Count(rows.size, len(scanned.table), "tie")
    yield from _of_rows("ties", count, rows, {})


def refusals(scanned: Scan) -> Iterator[Finding]:
    """Rows that cannot be used, with those of each reason."""
    reasons, refused = scanned.table["reason"], scanned.table["kind"] == REFUSED
    by_reason = {
        reason: np.flatnonzero(refused & (reasons == code))
        for code, reason in enumerate(scanned.reasons)
    }
    kinds = {reason: int(rows.size) for reason, rows in by_reason.items()}
    count = Count(int(refused.sum()), len(scanned.table), "row", kinds)
    evidence = {
        "examples": [
            f"{one.where}: {one.detail}" for named in scanned.refusals.values() for one in named
        ]
    }
    parts = {slug(reason): rows for reason, rows in by_reason.items()}
    yield from _of_rows("refused-rows", count, np.flatnonzero(refused), evidence, parts)


def _of_rows(
    name: str,
    count: Count,
    rows: Indices,
    evidence: Mapping[str, Any],
    parts: Mapping[str, Indices] | None = None,
) -> Iterator[Finding]:
    """The finding of a fault that is one of rows, not of records."""
    fault = FAULTS[name]
    if count.num:
        yield Finding(
            name, fault.severity(count), fault.title(count), rows,
            {"count": int(count.num), "share": count.num / count.total, **count.kinds, **evidence},
            fault.remedy, parts=parts or {},
        )  # fmt: skip


def slug(text: str) -> str:
    """A name for the command line."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def strengths(scanned: Scan, min_agreement: float) -> Iterator[Finding]:
    """Preferences that hardly are any, by votes or margins."""
    table = scanned.table[scanned.records]
    agreement = table["agreement"]
    rated = np.isfinite(agreement)
    evidence = {"rated": int(rated.sum()), "mean agreement": _mean(agreement[rated])}
    low = fault_of("low-agreement", scanned.noun, min_agreement)
    yield from _found(scanned, low, rated & (agreement < min_agreement),
                      {**evidence, "below": min_agreement})  # fmt: skip
    yield from _fault(scanned, "split-votes", rated & (agreement < 1), evidence)
    yield from _fault(scanned, "zero-margin", table["margin"] == 0)


def repeats(scanned: Scan) -> Iterator[Finding]:
    """Rows that an earlier one says already, word for word or nearly."""
    rows = scanned.records
    table = scanned.table[rows]
    keys = combined(table["prompt"], table["chosen"], table["rejected"], table["desirable"])
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    again = first[group] != np.arange(len(rows))
    sizes = np.bincount(group)
    evidence = {"groups": int((sizes > 1).sum()), "largest": int(sizes.max())}
    yield from _fault(scanned, "duplicates", again, evidence)
    near = near_repeats(scanned.signatures, scanned.table["desirable"], rows[~again])
    bounds = {"least similarity of completions": ALIKE, "of prompts": ALIKE_PROMPTS}
    yield from _fault(scanned, "near-duplicates", np.isin(rows, near), bounds)


def contradictions(scanned: Scan) -> Iterator[Finding]:
    """Preferences that cannot all hold."""
    table = scanned.table[scanned.records]
    if scanned.kind == "labels":
        keys = combined(table["prompt"], table["chosen"])
        both = np.intersect1d(keys[table["desirable"]], keys[~table["desirable"]])
        yield from _fault(
            scanned, "contradictions", np.isin(keys, both), {"completions": len(both)}
        )
        return
    against = opposed(table)
    round_about = np.zeros(len(table), np.bool_)
    round_about[~against] = in_cycles(table[~against])
    for name, mask in (("contradictions", against), ("cycles", round_about)):
        yield from _fault(scanned, name, mask, {"prompts": len(np.unique(table["prompt"][mask]))})


def texts(scanned: Scan) -> Iterator[Finding]:
    """What is in the texts and should not be."""
    table = scanned.table[scanned.records]
    yield from _fault(scanned, "white-space", table["blank_difference"])
    yield from _fault(scanned, "stand-in-answers", table["stand_in"])
    for name, column, kinds in (
        ("personal-data", "personal", PERSONAL),
        ("template-leftovers", "leftovers", LEFTOVERS),
        ("media-marks", "media", MEDIA_MARKS),
    ):
        found = {kind: int((table[column] >> bit & 1).sum()) for bit, kind in enumerate(kinds)}
        yield from _fault(scanned, name, table[column] > 0, kinds=found)


def leaks(scanned: Scan, held_out: Scan) -> Iterator[Finding]:
    """Rows whose prompt the evaluation data have too, word for word or nearly."""
    rows, others = scanned.records, held_out.records
    prompts, seen = scanned.table["prompt"][rows], held_out.table["prompt"][others]
    same = np.isin(prompts, seen)
    evidence = {"evaluation rows": int(np.isin(seen, prompts).sum())}
    yield from _fault(scanned, "leaks", same, evidence)
    _, theirs = np.unique(seen, return_index=True)
    _, own, number = np.unique(prompts[~same], return_index=True, return_inverse=True)
    if not own.size:
        return
    near = np.zeros(len(rows), np.bool_)
    near[~same] = near_to_others(
        scanned.signatures[rows[~same][own], PROMPT], held_out.signatures[others[theirs], PROMPT]
    )[number]
    yield from _fault(scanned, "near-leaks", near, {"least similarity": ALIKE})


def _fault(
    scanned: Scan,
    name: str,
    mask: NDArray[np.bool_],
    evidence: Mapping[str, Any] | None = None,
    *,
    kinds: Mapping[str, int] | None = None,
) -> Iterator[Finding]:
    """The finding of a fault that the checks of a run know by the same id."""
    return _found(scanned, fault_of(name, scanned.noun), mask, evidence or {}, kinds or {})


def _found(
    scanned: Scan,
    fault: Fault,
    mask: NDArray[np.bool_],
    evidence: Mapping[str, Any],
    kinds: Mapping[str, int] | None = None,
) -> Iterator[Finding]:
    num = int(mask.sum())
    if num:
        count = Count(num, len(mask), scanned.noun, kinds or {})
        yield Finding(
            fault.id, fault.severity(count), fault.title(count), scanned.records[mask],
            {"count": num, **count.kinds, **evidence}, fault.remedy,
        )  # fmt: skip


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None
