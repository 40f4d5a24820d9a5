"""A folder that training would refuse is found before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.core.errors import TrainingError


def test_taken_output_is_an_error_in_the_words_of_training(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**tiny_keys, "output": tmp_path / "run"}
    penchant.train("dpo", **keys)
    before = (tmp_path / "run" / "config.yaml").read_text()
    others: list[dict[str, Any]] = [{}, {"resume": True, "beta": 0.2}]
    for more in others:
        with pytest.raises(TrainingError) as refused:
            penchant.train("dpo", **keys, **more)
        found = penchant.check("dpo", probe=False, **keys, **more)
        (finding,) = found.errors
        assert finding.id == "output" and found.estimate is not None
        assert f"{finding.what}; {finding.remedy}" == str(refused.value)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_same_run_to_go_on_with_is_no_error(tiny_keys: dict[str, Any], tmp_path: Path) -> None:
    keys = {**tiny_keys, "output": tmp_path / "run"}
    penchant.train("dpo", **keys)
    assert not penchant.check("dpo", probe=False, resume=True, **keys).errors


def test_folder_of_other_files_is_an_error_and_a_new_one_is_not_made(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    assert not penchant.check("dpo", probe=False, output=tmp_path / "new", **tiny_keys).errors
    assert not (tmp_path / "new").exists()
    (tmp_path / "notes.txt").write_text("mine")
    (finding,) = penchant.check("dpo", probe=False, output=tmp_path, **tiny_keys).errors
    assert "holds no run" in finding.what
