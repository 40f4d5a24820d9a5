"""The report as one HTML page that opens offline: answers are untrusted, and are escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from penchant.core.pages import style
from penchant.methods import METHODS
from penchant.reporting.card import listed, template
from penchant.reporting.charts import as_svg
from penchant.reporting.curves import GROUPS, panels
from penchant.reporting.data import audit, tokenising
from penchant.reporting.figures import final_figures, tiles
from penchant.reporting.reading import Run
from penchant.reporting.settings import (
    caveats,
    changed,
    command,
    how_to_load,
    settings,
    versions,
)
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
    drawn = panels(runs)
    charts = {
        heading: [(one.title, Markup(as_svg(one))) for one in drawn if one.group == group]
        for group, heading in GROUPS.items()
    }
    facts = [_facts(run) for run in runs]
    text = template("report.html.jinja", escaped=True).render(
        title=_title(runs[0]) if len(runs) == 1 else _several(runs),
        runs=facts,
        common=_common(facts),
        differing=_differing(runs) if len(runs) > 1 else [],
        table=final_figures(runs),
        tiles=tiles(runs[0]) if len(runs) == 1 else [],
        charts={heading: some for heading, some in charts.items() if some},
        logged=any(run.metrics for run in runs),
        asked=_asked(runs),
        style=Markup(style()),
        # Hashes of the page's own script: nothing that a model wrote can run.
        script=Markup(script),
        script_digest=digest,
        shown=shown,
    )
    return text.encode("utf-8", "replace").decode()


def _title(run: Run) -> str:
    method = METHODS.get(run.method)
    tuned = method.title if method else run.method or "A run"
    model = str(run.config.get("model") or "").rstrip("/").rpartition("/")[2]
    return f"{tuned} of {model}" if model else tuned


def _several(runs: Sequence[Run]) -> str:
    names = ", ".join(run.name for run in runs)
    return f"{len(runs)} runs: {names}" if len(names) < 80 else f"{len(runs)} runs side by side"


def _facts(run: Run) -> dict[str, Any]:
    verdict: Verdict = judge(run)
    method = METHODS.get(run.method)
    differing = changed(run)
    findings = sorted(run.findings, key=_order)[:NUM_FINDINGS]
    saved = run.path / "model"
    return {
        "name": run.name,
        "method": run.method or "unknown",
        "method_title": method.title if method else "a method this version does not know",
        "model": run.config.get("model", "unknown"),
        "data": ", ".join(map(str, listed(run.config.get("data", "unknown")))),
        "date": _date(run),
        "verdict": verdict,
        "badge": BADGES[verdict.kind],
        "problems": run.problems,
        "live": run.live,
        "findings": [one for one in findings if one.get("severity") != "note"],
        "notes": [one for one in findings if one.get("severity") == "note"],
        "more_findings": len(run.findings) - len(findings),
        "audit": audit(run),
        "tokenising": tokenising(run),
        "changed": differing,
        "defaults": {k: v for k, v in settings(run).items() if k not in differing},
        "versions": versions(run),
        "command": command(run),
        "caveats": caveats(run),
        "path": str(run.path),
        "loading": how_to_load(saved) if saved.is_dir() else {},
    }


def _common(facts: Sequence[Mapping[str, Any]]) -> set[str]:
    """The parts that are the same for every run: they stand on the page once."""
    first = facts[0]
    parts = {"what": ("method_title", "model", "data"), "data": ("audit", "tokenising")}
    return {part for part, names in parts.items()
            if all(one[name] == first[name] for one in facts for name in names)}  # fmt: skip


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """The settings in which several runs differ, with those of each."""
    each = [settings(run) for run in runs]
    names = dict.fromkeys(name for one in each for name in one if name != "output")
    rows = [(name, [one.get(name) for one in each]) for name in names]
    return [(name, values) for name, values in rows if any(one != values[0] for one in values)]


def _date(run: Run) -> str:
    """When the run ended, or was last written to; empty where nothing is there to tell."""
    files = (run.path / name for name in ("summary.json", "metrics.jsonl", "config.yaml"))
    last = next((file for file in files if file.exists()), None)
    if last is None:
        return ""
    return datetime.fromtimestamp(last.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def _asked(runs: Sequence[Run]) -> list[Any]:
    """Prompts with their answers, where the runs have any."""
    if not any(run.samples or run.monitored for run in runs):
        return []
    from penchant.reporting.answers import asked

    return list(asked(runs))


def _order(finding: Mapping[str, Any]) -> tuple[int, int]:
    severity = finding.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 1, finding["step"]
