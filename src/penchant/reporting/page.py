"""The report as one HTML page that opens offline: answers are untrusted, and are escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from penchant.methods import METHODS
from penchant.reporting.card import listed, template
from penchant.reporting.charts import as_svg
from penchant.reporting.curves import panels
from penchant.reporting.data import audit, tokenising
from penchant.reporting.figures import final_figures
from penchant.reporting.reading import Run
from penchant.reporting.settings import caveats, changed, command, settings, versions
from penchant.reporting.verdict import Verdict, judge
from penchant.reporting.words import shown

# What a verdict is called and marked with: a colour alone tells not everybody.
BADGES: Mapping[str, tuple[str, str]] = {
    "sound": ("✓", "sound"),
    "doubtful": ("?", "doubtful"),
    "failed": ("✗", "failed"),
    "unfinished": ("…", "unfinished"),
    "unknown": ("?", "unknown"),
}
SEVERITIES = ("error", "warning", "note")
NUM_FINDINGS = 200


def render(runs: Sequence[Run]) -> str:
    """The page of one run, or of several side by side."""
    script = files(__package__).joinpath("search.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = template("report.html.jinja", escaped=True).render(
        title=" and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        runs=[_facts(run) for run in runs],
        table=final_figures(runs),
        charts=[(panel.title, Markup(as_svg(panel))) for panel in panels(runs)],
        # Hashes of the page's own script: nothing that a model wrote can run.
        script=Markup(script),
        script_digest=digest,
        shown=shown,
    )
    return text.encode("utf-8", "replace").decode()


def _facts(run: Run) -> dict[str, Any]:
    verdict: Verdict = judge(run)
    method = METHODS.get(run.method)
    differing = changed(run)
    during = sorted((one for one in run.findings if one["step"] > 0), key=_order)
    return {
        "name": run.name,
        "method": run.method or "unknown",
        "method_title": method.title if method else "a method this version does not know",
        "model": run.config.get("model", "unknown"),
        "data": ", ".join(map(str, listed(run.config.get("data", "unknown")))),
        "verdict": verdict,
        "badge": BADGES[verdict.kind],
        "problems": run.problems,
        "live": run.live,
        "findings": during[:NUM_FINDINGS],
        "more_findings": max(0, len(during) - NUM_FINDINGS),
        "before": sorted((one for one in run.findings if one["step"] <= 0), key=_order),
        "pairs": _pairs(run),
        "audit": audit(run),
        "tokenising": tokenising(run),
        "changed": differing,
        "defaults": {k: v for k, v in settings(run).items() if k not in differing},
        "versions": versions(run),
        "command": command(run),
        "caveats": caveats(run),
    }


def _pairs(run: Run) -> list[Any]:
    """Answers before and after, where the run has any."""
    if not (run.samples or run.monitored):
        return []
    from penchant.reporting.answers import pairs

    return list(pairs(run))


def _order(finding: Mapping[str, Any]) -> tuple[int, int]:
    severity = finding.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 1, finding["step"]
