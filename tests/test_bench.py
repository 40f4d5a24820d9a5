"""Every script of bench/ can be read, and those that are started by hand say what they take."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = {file.name: file.read_text(encoding="utf-8") for file in sorted(BENCH.glob("*.py"))}
# Runs in an environment of its own, with a TRL of 2024.
ELSEWHERE = ("ppo_trl.py",)


@pytest.fixture(autouse=True)
def _bench_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts find one another, and leave none of their modules to other tests."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in {Path(script).stem for script in SCRIPTS} & sys.modules.keys():
        del sys.modules[name]


@pytest.mark.parametrize("script", [name for name, text in SCRIPTS.items() if "argparse" in text])
def test_a_script_says_what_it_takes(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCH / script), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script}")


@pytest.mark.parametrize(
    "script",
    [n for n, text in SCRIPTS.items() if "argparse" not in text and n not in ELSEWHERE],
)
def test_a_module_of_scripts_can_be_imported(script: str) -> None:
    assert runpy.run_path(str(BENCH / script), run_name="imported")["__doc__"]
