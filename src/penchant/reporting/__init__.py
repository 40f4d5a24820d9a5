"""What happened in a run, as one page; imports no torch."""

from __future__ import annotations

import logging
from pathlib import Path

from penchant.core.atomic import write_atomically
from penchant.reporting.reading import ReportError, read_run, read_runs

logger = logging.getLogger("penchant")

__all__ = ["ReportError", "report", "write_card", "write_end_of_run"]


def report(*runs: str | Path, output: str | Path | None = None) -> Path:
    """Write what happened in one run, or in several side by side, as one HTML file.

    Args:
        runs: run directories, complete or not.
        output: the file; default: report.html in the run, or here for several.

    Returns:
        The file.

    Raises:
        ReportError: a folder holds no run, or the file cannot be written.
    """
    from penchant.reporting.page import render

    if not runs:
        raise ReportError("no run was given; give the folders that train wrote to (output)")
    paths = [Path(run) for run in runs]
    read = read_runs(paths)
    file = Path(output) if output else (paths[0] if len(paths) == 1 else Path()) / "report.html"
    try:
        write_atomically(file, render(read))
    except OSError as error:
        raise ReportError(f"cannot write {file}: {error.strerror}; set output") from error
    return file


def write_card(run: str | Path) -> Path:
    """Write what happened in a run as the card of the model it saved, `model/README.md`.

    Raises:
        ReportError: the folder holds no run or no saved model, or cannot be written.
    """
    from penchant.reporting.card import render_card

    path = Path(run)
    read = read_run(path)
    if not (path / "model").is_dir():
        raise ReportError(f"{path} has no saved model (model/); a run saves it when it ends")
    file = path / "model" / "README.md"
    try:
        write_atomically(file, render_card(read))
    except OSError as error:
        raise ReportError(f"cannot write {file}: {error.strerror}") from error
    return file


def write_end_of_run(run: Path) -> None:
    """Write page and card when a run is complete; what fails is a warning: the run is done."""
    for name, write in (("the report", report), ("the model's card", write_card)):
        try:
            write(run)
        except Exception as error:  # whatever it is, the finished run must not fail with it
            logger.warning("%s could not be written: %s: %s", name, type(error).__name__, error)
