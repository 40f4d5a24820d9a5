"""Every script of bench/ can be read, and those that are started by hand say what they take."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
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


@pytest.mark.parametrize(
    ("gold", "turned"),
    [
        ([0.0, 1.0, 0.5, 0.5], 3),
        ([0.0, 1.0, 0.5, 1.0, 0.5], 5),  # it recovers in between
        ([0.0, 1.0, 0.5, 0.92, 0.92], None),  # less than a tenth of the gain is lost at the end
        ([-0.1, -0.2], 1),  # never above its start
        ([0.0, 1.0], None),
    ],
)
def test_gold_has_turned_at_the_step_from_which_it_stays_low(
    gold: list[float], turned: int | None
) -> None:
    module = importlib.import_module("overoptimization")
    size = module.WINDOW
    batches = [value for value in gold for _ in range(size)]
    run = module.Run("free", 64, 0, 0.0, list(range(len(batches))), batches, [], None)
    assert turned == (None if run.turned is None else run.turned // size + 1)


@pytest.mark.slow
def test_the_trial_of_a_gpu_runs_whole_on_a_cpu(tmp_path: Path) -> None:
    """What is missing on this machine is a row of its own; nothing fails."""
    pytest.importorskip("bitsandbytes")
    words = ["--output", str(tmp_path), "--device", "cpu", "--size", "tiny", "--strict"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(BENCH / "gpu.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    rows = [row for part in found["parts"].values() for row in part["rows"]]
    assert {row["part"] for row in rows} == set(found["parts"])
    assert all(row.keys() > {"part", "name"} for row in rows)
    losses = {row["name"].split(",")[0]: row["losses"] for row in rows if "losses" in row}
    assert losses.keys() >= {"dpo", "kto", "reward", "ppo", "grpo"}
    assert {len(values) for values in losses.values()} == {3}
    table = (tmp_path / "gpu.md").read_text("utf-8")
    assert table.count("\n| ") == len(rows) + 1
