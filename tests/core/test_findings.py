"""A finding can only be silenced by an id that exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.cli.main import main
from penchant.commands.check_result import STOPPED
from penchant.core import commands
from penchant.core.errors import ConfigError
from penchant.core.findings import IDS
from penchant.data.faults import FAULTS
from penchant.guards.monitors.detectors import all_detectors

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "src" / "penchant" / "core" / "guards.md"
MADE = re.compile(r'\b(?:Finding|note|warning|has)\(\s*(?:id=)?"([a-z0-9-]+)"')


def test_ids_are_those_that_the_docs_explain() -> None:
    headings = re.findall(r"^### `?([a-z0-9-]+)`?$", DOCS.read_text(encoding="utf-8"), re.M)
    assert sorted(IDS) == sorted(headings)
    assert set(all_detectors()) <= set(IDS)


def test_explain_prints_what_is_known_of_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "length-bias"]) == 0
    out = capsys.readouterr().out
    assert "The longer (or shorter) answer" in out and "leaks" not in out
    assert main(["explain", "lenght-bias"]) == 1
    assert "did you mean length-bias" in capsys.readouterr().err


def test_commands_in_messages_run_where_the_program_is_not_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "_on_path", lambda: False)
    text = "penchant: drop them: penchant data clean x; pip install 'penchant[data]'"
    wanted = "penchant: drop them: python -m penchant data clean x; pip install 'penchant[data]'"
    assert commands.typeable(text) == wanted
    assert commands.typeable(wanted) == wanted
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "penchant"
    program.touch()
    monkeypatch.setattr("sys.argv", [str(program), "demo"])
    assert commands.typeable("run penchant chat RUN") == f"run {program} chat RUN"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bin/penchant", "demo"])
    assert commands.typeable("run penchant chat RUN") == "run bin/penchant chat RUN"


def test_every_finding_that_the_code_makes_can_be_silenced_and_looked_up() -> None:
    rooms = [ROOT / "src" / "penchant" / name for name in ("guards", "rl", "training", "methods")]
    source = "".join(file.read_text("utf-8") for room in rooms for file in room.rglob("*.py"))
    made = {*MADE.findall(source), *all_detectors(), *FAULTS, *(name for _, name in STOPPED)}
    assert made == set(IDS)


def test_misspelt_id_is_refused_before_anything_is_loaded(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**tiny_keys, "model": str(tmp_path / "none")}
    with pytest.raises(ConfigError, match=r"silence: unknown finding 'lenght-bias'.*length-bias"):
        penchant.train("dpo", output=tmp_path / "run", silence="ties,lenght-bias", **keys)
    assert not (tmp_path / "run").exists()


def test_several_near_ids_are_all_named(tiny_keys: dict[str, Any], tmp_path: Path) -> None:
    result = penchant.check("dpo", output=tmp_path / "run", silence="no-held", **tiny_keys)
    (finding,) = result.errors
    assert "no-held-out" in str(finding)
    assert "no-held-out-prompts" in str(finding)


def test_id_like_no_other_leads_to_the_list(tiny_keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are: configuration, "):
        penchant.train("dpo", output=tmp_path / "run", silence="zzzzqqqq", **tiny_keys)
