"""Whatever state a folder is in, the report says what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from penchant.reporting import ReportError, report
from penchant.reporting.reading import read_run, read_runs

WriteRun = Callable[..., Path]


def test_half_a_last_line_is_left_out_and_said(write_run: WriteRun) -> None:
    run = write_run()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 101, "loss": 0.1, "text": "ü'.encode()[:-1])
    found = read_run(run)
    assert found.steps == 100
    assert "the last line of metrics.jsonl is half-written and left out" in found.problems
    assert "half-written" in report(run).read_text(encoding="utf-8")


def test_broken_lines_in_the_middle_are_counted(write_run: WriteRun) -> None:
    run = write_run()
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(f"{{oops\n[1]\n{text}")
    assert "2 lines of metrics.jsonl cannot be read and are left out" in read_run(run).problems


def test_nan_is_reported_and_does_not_reach_a_curve(write_run: WriteRun) -> None:
    metrics = [{"step": n, "loss": math.nan if n == 3 else 0.5} for n in range(1, 6)]
    run = write_run(metrics=metrics)
    assert "loss is not a finite number at 1 logged steps (first: 3)" in read_run(run).problems
    assert "nan" not in report(run).read_text(encoding="utf-8").partition("<svg")[2].lower()


@pytest.mark.parametrize("metrics", [None, []])
def test_a_run_without_metrics_still_has_a_report(write_run: WriteRun, metrics: None) -> None:
    page = report(write_run(metrics=metrics, summary=None)).read_text(encoding="utf-8")
    assert "Nothing was logged." in page and "unfinished" in page


def test_an_older_version_without_most_files_and_keys_has_a_report(write_run: WriteRun) -> None:
    run = write_run(
        config={"method": "gone"},
        summary={"steps": 3},
        findings=[{"step": 2}],
        samples=[{"step": 0, "answer": "a"}],
        metrics=[{"step": 1, "loss": 1}],
    )
    assert "a method this version does not know" in report(run).read_text(encoding="utf-8")


def test_missing_and_broken_configuration_is_said(write_run: WriteRun) -> None:
    missing = write_run("missing", config=None)
    assert any("config.yaml is missing" in one for one in read_run(missing).problems)
    broken = write_run("broken")
    (broken / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in read_run(broken).problems
    assert report(missing, broken, output=broken / "both.html").exists()


def test_killed_and_live_runs_are_told_apart_by_when_they_were_written(
    write_run: WriteRun,
) -> None:
    run = write_run(summary=None)
    written = (run / "metrics.jsonl").stat().st_mtime
    assert read_run(run, now=written + 5).live
    later = read_run(run, now=written + 3600)
    assert not later.live and "the run is not complete" in later.problems[0]


def test_folders_that_are_no_run_are_named_with_what_is_missing(
    write_run: WriteRun, tmp_path: Path
) -> None:
    inner = write_run("sweep/beta=0.1")
    with pytest.raises(ReportError, match=r"no config.yaml and no metrics.jsonl.*beta=0.1"):
        read_run(inner.parent)
    with pytest.raises(ReportError, match="does not exist"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ReportError, match="is a file"):
        read_run(inner / "config.yaml")
    with pytest.raises(ReportError, match="given twice"):
        read_runs([inner, inner])
    with pytest.raises(ReportError, match="no run was given"):
        report()


def test_runs_of_one_name_are_told_apart_by_their_parents(write_run: WriteRun) -> None:
    runs = [write_run("a/run"), write_run("b/run")]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]
