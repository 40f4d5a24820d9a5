"""Every finding of a run leads to its explanation."""

from __future__ import annotations

import re
from pathlib import Path

from penchant.guards.monitors.detectors import DETECTORS

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    "rl/findings.py",
    "engine.py",
    "guards/monitors/starting.py",
    "guards/monitors/supervisor.py",
)


def test_every_finding_during_a_run_has_its_heading() -> None:
    headings = re.findall(r"^### (\S+)$", (ROOT / "docs" / "guards.md").read_text(), re.MULTILINE)
    assert len(headings) == len(set(headings))
    ids = {*DETECTORS, "detector-failed"}
    for name in FILES:
        source = (ROOT / "src" / "penchant" / name).read_text()
        ids |= set(re.findall(r'(?:\bid=|_finding\(\s*)"([a-z-]+)"', source))
    assert {"not-finite", "never-ends", "monitor-failed", "no-held-out-prompts"} <= ids
    assert ids <= set(headings)
