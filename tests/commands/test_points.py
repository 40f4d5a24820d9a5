"""The folder of runs that differ in some keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penchant.commands.points import open_folder
from penchant.core.errors import TrainingError

VARY = {"beta": [0.1, 0.3]}


def test_an_output_that_can_hold_no_points_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for output in (file, file / "sweep"):
        message = f"output {output} cannot be written: Not a directory; choose another output"
        with pytest.raises(TrainingError, match=message):
            open_folder(output, VARY)
    assert file.read_text() == "x"

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    with pytest.raises(TrainingError, match="Permission denied; choose another output"):
        open_folder(tmp_path / "new", VARY)


def test_a_folder_of_points_is_gone_on_with_only_where_that_is_asked_for(tmp_path: Path) -> None:
    open_folder(tmp_path / "sweep", VARY)
    open_folder(tmp_path / "sweep", VARY, resume=True)
    with pytest.raises(TrainingError, match="already holds a sweep; choose another output, or"):
        open_folder(tmp_path / "sweep", VARY, resume=False)
    with pytest.raises(TrainingError, match="is not empty and holds no sweep; choose another"):
        open_folder(tmp_path, VARY)
