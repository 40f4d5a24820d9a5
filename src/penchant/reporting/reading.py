"""A run directory as it is: complete, half-written, killed, or of an older version."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from penchant.core.errors import UserError
from penchant.guards.monitors.history import History

LIVE_SECONDS = 600


class ReportError(UserError):
    """A folder holds no run, or a report cannot be written."""


@dataclass(frozen=True)
class Run:
    """What a run directory holds; what is not there is empty.

    Attributes:
        path, name: the folder; its name, with its parent's where several runs share one.
        config: the flat keys, with the data's fingerprints and the versions.
        metrics, findings, samples, monitored: lines of the files of those names
            (`monitor.jsonl` for the last), each with an integer `step`.
        summary: None where the run is not complete.
        problems: what is missing or cannot be read, a sentence each.
        live: no summary, and written to in the last ten minutes.
    """

    path: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    monitored: list[dict[str, Any]] = field(default_factory=list)
    data: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    live: bool = False

    @property
    def method(self) -> str:
        """The method's name; empty where no file tells."""
        return str(self.config.get("method") or (self.summary or {}).get("method") or "")

    @property
    def history(self) -> History:
        """The finite values of every metric."""
        return History(self.metrics)

    @property
    def steps(self) -> int:
        """The last step that was logged, or that the summary names."""
        logged = max((record["step"] for record in self.metrics), default=0)
        return max(logged, whole((self.summary or {}).get("steps")) or 0)


def whole(value: Any) -> int | None:
    """A whole number, or None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def read_run(path: Path, *, now: float | None = None) -> Run:
    """Read what is there, and note what is not.

    Args:
        path: the folder.
        now: seconds since the epoch; default: the clock's.

    Raises:
        ReportError: the folder is none, or holds no run.
    """
    _require_run(path)
    problems: list[str] = []
    config = _mapping(path / "config.yaml", problems) or {}
    metrics = _lines(path / "metrics.jsonl", problems, needed=True)
    summary = _mapping(path / "summary.json", problems)
    live = summary is None and _age(path / "metrics.jsonl", now) < LIVE_SECONDS
    if summary is None and not live:
        problems.append("the run is not complete: there is no readable summary.json")
    if not metrics:
        problems.append("nothing was logged: there are no curves")
    problems += _not_finite(metrics)
    return Run(
        path=path,
        name=path.resolve().name,
        config=config,
        metrics=metrics,
        findings=_lines(path / "findings.jsonl", problems),
        samples=_lines(path / "samples.jsonl", problems),
        monitored=_lines(path / "monitor.jsonl", problems),
        data=_mapping(path / "data.json", problems) or {},
        summary=summary,
        problems=problems,
        live=live,
    )


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read several runs; names that are the same get their parents in front.

    Raises:
        ReportError: a folder is no run, or one is given twice.
    """
    given = list(paths)
    if len({path.resolve() for path in given}) < len(given):
        raise ReportError("the same run is given twice; give each once")
    runs = [read_run(path) for path in given]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    common = [path.resolve().parts for path in given]
    depth = 0
    while len({parts[depth] for parts in common if len(parts) > depth}) == 1:
        depth += 1
    return [
        Run(**{**vars(run), "name": "/".join(parts[depth:])})
        for run, parts in zip(runs, common, strict=True)
    ]


def _require_run(path: Path) -> None:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ReportError(f"{path} {what}; give the folder that train wrote to (output)")
    if not any((path / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        inner = sorted(child.parent for child in path.glob("*/config.yaml"))
        hint = (
            f"did you mean the runs in it: {' '.join(str(one) for one in inner[:8])}?"
            if inner
            else "give the folder that train wrote to (output)"
        )
        raise ReportError(f"{path} is no run: it has no config.yaml and no metrics.jsonl; {hint}")


def _age(path: Path, now: float | None) -> float:
    if not path.exists():
        return math.inf
    return (time.time() if now is None else now) - path.stat().st_mtime


def _mapping(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """A YAML or JSON object; None where there is none."""
    if not path.exists():
        if path.name == "config.yaml":
            problems.append("config.yaml is missing: the settings are not known")
        return None
    load = _from_yaml if path.suffix == ".yaml" else json.loads
    try:
        content = load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, OSError):
        content = None
    if not isinstance(content, dict):
        problems.append(f"{path.name} cannot be read")
        return None
    return content


def _from_yaml(text: str) -> Any:
    # libyaml's reader is ten times as fast, where PyYAML was built with it.
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _lines(path: Path, problems: list[str], *, needed: bool = False) -> list[dict[str, Any]]:
    if not path.exists():
        if needed:
            problems.append(f"{path.name} is missing")
        return []
    # By bytes: a cut may split a character, and answers may hold what str.splitlines splits.
    *lines, rest = path.read_bytes().split(b"\n")
    records, broken = [], 0
    for line in lines:
        record = _record(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            broken += 1
    if rest.strip():
        problems.append(f"the last line of {path.name} is half-written and left out")
    if broken:
        problems.append(f"{broken} {'line' if broken == 1 else 'lines'} of {path.name} cannot be "
                        "read and are left out")  # fmt: skip
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or whole(record.get("step")) is None:
        return None
    return record


def _not_finite(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    bad: dict[str, list[int]] = {}
    for record in metrics:
        for name, value in record.items():
            # JSON has no word for such a number: it is written as null.
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                bad.setdefault(name, []).append(record["step"])
    return [
        f"{name} is not a finite number at {len(steps)} logged steps (first: {steps[0]})"
        for name, steps in sorted(bad.items())
    ]
