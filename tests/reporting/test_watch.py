"""A run in the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from penchant.cli.main import main
from penchant.reporting.reading import Run
from penchant.reporting.watch import num_steps, seconds_left, sparkline, watch

WriteRun = Callable[..., Path]
FINDING = {"step": 60, "id": "drift", "severity": "warning", "what": "KL 16", "action": "doubled"}


def test_one_frame_shows_metrics_findings_and_verdict(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(write_run(findings=[FINDING])), "--once"]) == 0
    shown = capsys.readouterr().out
    for text in ("complete, 100 steps", "loss", "held-out accuracy", "drift, step 60", "doubled"):
        assert text in shown


def test_it_ends_when_the_summary_appears(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(summary=None)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        (run / "summary.json").write_text('{"steps": 100}')

    monkeypatch.setattr("time.sleep", wait)
    file = io.StringIO()
    watch(run, console=Console(file=file, force_terminal=True, width=100))
    assert waits == [2.0] and "complete, 100 steps" in file.getvalue()


def test_time_left_is_that_of_the_steps_to_come() -> None:
    metrics = [{"step": n, "epoch": n / 10, "tokens": 50.0, "tokens_per_second": 25.0}
               for n in range(1, 5)]  # fmt: skip
    run = Run(Path("r"), "r", {"num_train_epochs": 1.0, "max_steps": None}, metrics)
    assert num_steps(run) == 10
    assert seconds_left(run) == pytest.approx(6 * 2.0)


def test_sparkline_spans_least_and_most() -> None:
    assert sparkline([0.0, 2.0]) == "▁█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline([float(n) for n in range(1000)])) <= 32
