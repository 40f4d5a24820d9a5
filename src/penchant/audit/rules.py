"""Faults of single rows and of rows against each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.audit.facts import CHOSEN, PROMPT, REFUSED, REJECTED
from penchant.audit.finding import Finding, Severity
from penchant.audit.graphs import in_cycles, opposed
from penchant.audit.patterns import LEFTOVERS, PERSONAL
from penchant.audit.scan import Scan
from penchant.data.near import Indices, combined, near_duplicates
from penchant.data.quality import severity_of_contradictions
from penchant.data.records import counted

# Least Jaccard similarity of words and their pairs, estimated from 64 hashes (error 0.05). A text
# with 5% of its words changed has about 0.85; a short prompt with one changed word has half.
ALIKE_COMPLETIONS, ALIKE_PROMPTS = 0.65, 0.5
MIN_AGREEMENT = 0.6


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
    if rows.size:
        share = rows.size / len(scanned.table)
        yield Finding(
            "ties", "note", f"{counted(rows.size, 'tie')}, {share:.1%} of the rows", rows,
            {"count": int(rows.size), "share": share},
            "training leaves them out; drop them so that every tool does",
        )  # fmt: skip


def refusals(scanned: Scan) -> Iterator[Finding]:
    """Rows that cannot be used, by the reason."""
    reasons, refused = scanned.table["reason"], scanned.table["kind"] == REFUSED
    for code, reason in enumerate(scanned.reasons):
        rows = np.flatnonzero(refused & (reasons == code))
        examples = [f"{one.where}: {one.detail}" for one in scanned.refusals[reason]]
        yield Finding(
            slug(reason), "warning", f"{counted(rows.size, 'row')} refused: {reason}", rows,
            {"count": int(rows.size), "examples": examples},
            "training leaves them out; correct them at their source, or drop them",
        )  # fmt: skip


def slug(text: str) -> str:
    """A name for the command line."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def strengths(scanned: Scan, min_agreement: float) -> Iterator[Finding]:
    """Preferences that hardly are any, by votes or margins."""
    rows = scanned.records
    agreement, margin = scanned.table["agreement"][rows], scanned.table["margin"][rows]
    rated = np.isfinite(agreement)
    evidence = {"rated": int(rated.sum()), "mean agreement": _mean(agreement[rated])}
    low = rated & (agreement < min_agreement)
    if low.any():
        yield Finding(
            "low-agreement", "warning",
            f"{counted(int(low.sum()), 'pair')} with fewer than {min_agreement:.0%} of the votes",
            rows[low], {**evidence, "count": int(low.sum()), "below": min_agreement},
            "drop them, or set --min_agreement",
        )  # fmt: skip
    split = rated & (agreement < 1)
    if split.any():
        yield Finding(
            "split-votes", "note", f"{counted(int(split.sum()), 'pair')} without unanimity",
            rows[split], {**evidence, "count": int(split.sum())},
            "keep them with a method that allows for noise (robust, IPO), or drop them",
        )  # fmt: skip
    nothing = margin == 0
    if nothing.any():
        yield Finding(
            "zero-margin", "warning", f"{counted(int(nothing.sum()), 'pair')} with a margin of 0",
            rows[nothing], {"count": int(nothing.sum())}, "they are ties: drop them",
        )  # fmt: skip


def repeats(scanned: Scan) -> Iterator[Finding]:
    """Rows that an earlier one says already, word for word or nearly."""
    rows = scanned.records
    table = scanned.table[rows]
    keys = combined(table["prompt"], table["chosen"], table["rejected"], table["desirable"])
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    again = first[group] != np.arange(len(rows))
    if again.any():
        sizes = np.bincount(group)
        yield Finding(
            "duplicates", "warning",
            f"{counted(int(again.sum()), 'row')} that repeat an earlier one", rows[again],
            {"count": int(again.sum()), "groups": int((sizes > 1).sum()),
             "largest": int(sizes.max())},
            "drop them: the first of each stays",
        )  # fmt: skip
    rows = rows[~again]
    least = {PROMPT: ALIKE_PROMPTS, CHOSEN: ALIKE_COMPLETIONS, REJECTED: ALIKE_COMPLETIONS}
    parts = [(scanned.signatures[:, side], bound) for side, bound in least.items()]
    near = rows[near_duplicates(parts, rows) != rows]
    if near.size:
        yield Finding(
            "near-duplicates", "warning",
            f"{counted(int(near.size), 'row')} nearly equal to an earlier one", near,
            {"count": int(near.size), "least similarity of completions": ALIKE_COMPLETIONS,
             "least similarity of prompts": ALIKE_PROMPTS},
            "drop them: the first of each group stays",
        )  # fmt: skip


def contradictions(scanned: Scan) -> Iterator[Finding]:
    """Preferences that cannot all hold."""
    rows = scanned.records
    table = scanned.table[rows]
    if scanned.kind == "labels":
        yield from _contradicted_labels(rows, table)
        return
    against = opposed(table)
    if against.any():
        yield Finding(
            "contradictions", _gravity(against, scanned),
            f"{counted(int(against.sum()), 'pair')} that others state the other way round",
            rows[against],
            {"count": int(against.sum()), "prompts": len(np.unique(table["prompt"][against]))},
            "drop them, or build from the votes behind them",
        )  # fmt: skip
    rows, table = rows[~against], table[~against]
    round_about = in_cycles(table)
    if round_about.any():
        yield Finding(
            "cycles", _gravity(round_about, scanned),
            f"{counted(int(round_about.sum()), 'pair')} in cycles: A over B, B over C, C over A",
            rows[round_about],
            {"count": int(round_about.sum()),
             "prompts": len(np.unique(table["prompt"][round_about]))},
            "drop them, or rank the completions of their prompts again",
        )  # fmt: skip


def _gravity(mask: NDArray[np.bool_], scanned: Scan) -> Severity:
    return severity_of_contradictions(float(mask.sum()) / len(scanned.records))


def _contradicted_labels(rows: Indices, table: NDArray[Any]) -> Iterator[Finding]:
    keys = combined(table["prompt"], table["chosen"])
    both = np.intersect1d(keys[table["desirable"]], keys[~table["desirable"]])
    against = np.isin(keys, both)
    if against.any():
        yield Finding(
            "contradictions", severity_of_contradictions(float(against.mean())),
            f"{counted(int(against.sum()), 'label')} of completions that were judged both ways",
            rows[against], {"count": int(against.sum()), "completions": len(both)},
            "drop them, or judge them again",
        )  # fmt: skip


def texts(scanned: Scan) -> Iterator[Finding]:
    """What is in the texts and should not be."""
    rows = scanned.records
    table = scanned.table[rows]
    blank = rows[table["blank_difference"]]
    if blank.size:
        yield Finding(
            "white-space", severity_of_contradictions(blank.size / len(rows)),
            f"{counted(int(blank.size), 'pair')} whose completions differ in white space or case "
            "only", blank, {"count": int(blank.size)}, "drop them: they teach only that",
        )  # fmt: skip
    yield from _matches(rows, table["personal"], PERSONAL, "personal data", "warning",
                        "drop them, or mask them at the source")  # fmt: skip
    yield from _matches(rows, table["leftovers"], LEFTOVERS, "template leftovers", "warning",
                        "split such texts into chat messages, or drop them")  # fmt: skip


def _matches(
    rows: Indices, bits: NDArray[Any], names: Iterable[str], what: str, severity: Severity, fix: str
) -> Iterator[Finding]:
    hit = rows[bits > 0]
    if hit.size:
        counts = {name: int((bits >> bit & 1).sum()) for bit, name in enumerate(names)}
        shown = ", ".join(f"{name} in {count}" for name, count in counts.items() if count)
        yield Finding(
            slug(what), severity, f"{what} in {counted(int(hit.size), 'row')}: {shown}", hit,
            {"count": int(hit.size), **counts}, fix,
        )  # fmt: skip


def leaks(scanned: Scan, held_out: Scan) -> Iterator[Finding]:
    """Rows whose prompt the evaluation data have too, word for word or nearly."""
    rows, others = scanned.records, held_out.records
    prompts, seen = scanned.table["prompt"][rows], held_out.table["prompt"][others]
    same = np.isin(prompts, seen)
    shared = int(np.isin(seen, prompts).sum())
    if same.any():
        yield Finding(
            "leaks", "error", f"{counted(int(same.sum()), 'row')} with a prompt of the evaluation",
            rows[same], {"count": int(same.sum()), "evaluation rows": shared},
            "drop them: held-out numbers are worth nothing with them",
        )  # fmt: skip
    rows = rows[~same]
    _, theirs = np.unique(seen, return_index=True)
    _, own, number = np.unique(prompts[~same], return_index=True, return_inverse=True)
    both = np.concatenate(
        [held_out.signatures[others[theirs], PROMPT], scanned.signatures[rows[own], PROMPT]]
    )
    group = near_duplicates([(both, ALIKE_COMPLETIONS)], np.arange(len(both)))
    near = rows[(group[len(theirs) :] < len(theirs))[number]]
    if near.size:
        yield Finding(
            "near-leaks", "warning",
            f"{counted(int(near.size), 'row')} with a prompt nearly equal to one of the evaluation",
            near, {"count": int(near.size), "least similarity": ALIKE_COMPLETIONS},
            "drop them, or split by prompt with near duplicates together",
        )  # fmt: skip


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None
