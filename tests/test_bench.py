"""Every script of bench/ can be read, and those that are started by hand say what they take."""

from __future__ import annotations

import importlib
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from penchant.models.load import load_causal_model, load_tokenizer

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
    run = module.Run("free", 64, 0, 0, 0.0, list(range(len(batches))), batches, [], None)
    assert turned == (None if run.turned is None else run.turned // size + 1)


def test_the_fits_find_the_curve_that_gold_follows() -> None:
    """Gao et al. 2022: d (a - b d) and d (a - b log d), d the square root of the divergence."""
    fits = importlib.import_module("overoptimization").fits
    roots = [0.1 * i for i in range(1, 60)]
    squared = fits([0.4 + d * (0.3 - 0.05 * d) for d in roots], [d * d for d in roots], 0.4)
    assert [squared[k] for k in ("square_a", "square_b", "square_r2")] == pytest.approx(
        [0.3, 0.05, 1.0]
    )
    assert squared["log_r2"] < 0.99
    logged = fits([0.4 + d * (0.2 - 0.1 * math.log(d)) for d in roots], [d * d for d in roots], 0.4)
    assert [logged[k] for k in ("log_a", "log_b", "log_r2")] == pytest.approx([0.2, 0.1, 1.0])


def test_a_point_is_a_policy_s_reward_and_how_far_its_answers_are_from_the_model(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    frontier = importlib.import_module("frontier")
    task = frontier.Task(str(tiny_model_dir), frontier.Scale(6, 2, 1, 1.0, {"rloo": 1}))
    known = {"method": "rloo", "strength": "beta=0.05", "seed": 0, "seconds": 0.0}
    assert task.measure(tiny_model_dir, **known).kls == pytest.approx([0.0] * 64, abs=1e-4)
    sharper = load_causal_model(str(tiny_model_dir), dtype=torch.float32)
    with torch.no_grad():
        sharper.lm_head.weight *= 30
    sharper.save_pretrained(tmp_path / "sharper")
    load_tokenizer(str(tiny_model_dir)).save_pretrained(tmp_path / "sharper")
    kls = task.measure(tmp_path / "sharper", **known).kls
    assert len(kls) == 64 and sum(kls) / 64 > 1.0
    best = task.best_of((1, 4))
    assert [point.kls[0] for point in best] == pytest.approx([0.0, math.log(4) - 0.75])
    assert best[0].signal <= best[1].signal


def test_all_methods_are_run_at_one_strength_before_the_next() -> None:
    plan = importlib.import_module("frontier").plan
    assert [(known["strength"], known["seed"]) for known, _ in plan("dpo,ppo", "0,1", 2)] == [
        ("beta=0.01", 0), ("beta=0.01", 1), ("init_kl_coef=0.02", 0), ("init_kl_coef=0.02", 1),
        ("beta=0.3", 0), ("beta=0.3", 1), ("init_kl_coef=0.3", 0), ("init_kl_coef=0.3", 1),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_frontier_of_a_story_model_in_small(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method moves within a few steps, and most earn more of the signal than the model."""
    model = shared / "models" / "stories260k"
    if not model.is_dir():
        pytest.skip("needs ../shared/models/stories260k")
    frontier = importlib.import_module("frontier")
    words = ["frontier.py", "--model", str(model), "--scale", "quick", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path)])
    frontier.main()
    folder = tmp_path / "stories260k-quick-fp32"
    lines = (folder / "points.jsonl").read_text("utf-8").splitlines()
    points = {point["method"]: point for point in map(json.loads, lines)}
    assert points.keys() == frontier.STRENGTHS.keys()
    assert all(0.2 < sum(point["kls"]) / 64 < 30 for point in points.values())
    (before,) = frontier.Task(str(model), frontier.SCALES["quick"]).best_of([1])
    earned = {name: point["signal"] - before.signal for name, point in points.items()}
    # Few steps of ORPO, CPO and GRPO move the model hardly more than their pairs or groups vary.
    assert all(earned.pop(name) > -0.2 for name in ("orpo", "cpo", "grpo"))
    assert min(earned.values()) > 0.15, earned
    assert (folder / "frontier.png").stat().st_size > 10_000


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
