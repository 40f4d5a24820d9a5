"""Everything that is known of some data, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.audit import rules, signals
from penchant.audit.cues import Cue, measure_cues
from penchant.audit.facts import RECORD
from penchant.audit.finding import SEVERITIES, Finding, Places
from penchant.audit.plots import Plot, draw_up
from penchant.audit.probe import Probe
from penchant.audit.scan import Scan, scan
from penchant.audit.tokens import token_lengths
from penchant.data.faults import addressed
from penchant.data.lengths import Sample, TokenLengths
from penchant.data.noise import Noise, measure_noise
from penchant.data.opening import Sources


@dataclass(frozen=True)
class Report:
    """What inspecting found.

    Attributes:
        source, layout, kind: what was read.
        counts: of rows, by what they are, and of distinct prompts.
        findings: errors first; their `rows` index `places`.
        places: of all rows.
        cues: accuracies of shallow traits; empty for labels.
        noise: from votes, where there are any.
        probe: from a probe, where there are none and enough pairs.
        languages: completions in a sample by language, `?` where it cannot be told.
        tokens: where a model was given.
        plots: what the page shows.
    """

    source: str
    layout: str
    kind: str
    counts: Mapping[str, int]
    findings: list[Finding]
    places: Places
    cues: list[Cue]
    noise: Noise | None
    probe: Probe | None
    languages: Mapping[str, int]
    tokens: TokenLengths | None
    plots: list[Plot]

    def finding(self, name: str) -> Finding | None:
        """The finding of an id."""
        return next((one for one in self.findings if one.id == name), None)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON would hold it, with the place of every row found."""
        return {
            "source": self.source,
            "layout": self.layout,
            "kind": self.kind,
            "counts": dict(self.counts),
            "findings": [
                {
                    "id": one.id,
                    "severity": one.severity,
                    "title": one.title,
                    "evidence": dict(one.evidence),
                    "remedy": one.remedy,
                    "sampled": one.sampled,
                    "rows": list(self.places.at(one.rows)),
                }
                for one in self.findings
            ],
            "cues": [{**asdict(cue), "when_differs": cue.when_differs} for cue in self.cues],
            "languages": dict(self.languages),
            "tokens": None if self.tokens is None else asdict(self.tokens),
        }


def make_report(
    sources: Sources,
    held_out: Sources | None,
    *,
    model: str | Path | None,
    max_length: int,
    max_prompt_length: int,
    min_agreement: float,
    noise_rate: float | None,
    sample: int,
    processes: int | None,
    chat_template: str | None,
    trust_remote_code: bool,
) -> Report:
    """Read, then apply every rule; `penchant.data.inspect` says what the arguments are."""
    scanned = scan(sources, num_sampled=sample, processes=processes)
    findings = rules.row_faults(scanned, min_agreement)
    if held_out is not None:
        findings += rules.leaks(scanned, scan(held_out, num_sampled=1, processes=processes))
    held_out_argument = held_out.argument if held_out else ""
    table = scanned.table[scanned.records]
    noise = measure_noise(_agreements(table)) if scanned.kind == "pairs" else None
    cues: list[Cue] = []
    probe: Probe | None = None
    if scanned.kind == "pairs":
        cues = measure_cues(table)
        findings += signals.cue_findings(scanned, cues)
        if noise is None or noise_rate is not None:
            probe, by_probe = signals.noise_from_probe(scanned, noise_rate)
            findings += by_probe
        elif noise.told and noise.num_split:
            findings.append(signals.noise_from_votes(noise))
    spoken, of_languages = signals.languages(scanned)
    findings += of_languages
    lengths: tuple[Sample, TokenLengths] | None = None
    if model is not None:
        measured, of_tokens, cut = token_lengths(
            scanned, model, max_length, max_prompt_length,
            chat_template=chat_template, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        lengths = (measured, of_tokens)
        findings += cut
    return Report(
        source=scanned.name,
        layout=scanned.layout,
        kind=scanned.kind,
        counts=_counts(scanned, table),
        findings=[
            replace(one, remedy=addressed(one.remedy, sources.argument, held_out_argument))
            for one in sorted(findings, key=lambda one: SEVERITIES.index(one.severity))
        ],
        places=scanned.places,
        cues=cues,
        noise=noise,
        probe=probe,
        languages=spoken,
        tokens=lengths[1] if lengths else None,
        plots=draw_up(table, scanned.kind, cues, probe, spoken, lengths),
    )


def _agreements(table: NDArray[Any]) -> list[float]:
    """Of the rated pairs."""
    agreement = table["agreement"].astype(np.float64)
    return [float(one) for one in agreement[np.isfinite(agreement)]]


def _counts(scanned: Scan, table: NDArray[Any]) -> dict[str, int]:
    _, sizes = np.unique(table["prompt"], return_counts=True)
    counts = {
        "rows": len(scanned.table),
        scanned.kind: int((scanned.table["kind"] == RECORD).sum()),
        "ties": len(scanned.ties),
        "refused": len(scanned.table) - len(scanned.records) - len(scanned.ties),
        "prompts": len(sizes),
        "most for one prompt": int(sizes.max()),
        "sampled": len(scanned.sample),
    }
    if scanned.kind == "labels":
        counts["desirable"] = int(table["desirable"].sum())
    return counts
