"""What a launched check says where a process meets what the others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.core.errors import TrainingError


def test_an_error_that_the_leader_may_not_hear_of_is_raised(
    tiny_keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader waits for a process that fails alone, and would never return its error."""

    def fail(*_: Any) -> None:
        raise TrainingError("out of memory while passes were tried; set a lower max_length")

    monkeypatch.setattr("penchant.commands.check._look", fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys = {**tiny_keys, "output": tmp_path / "run"}
    monkeypatch.setenv("RANK", "0")
    (error,) = penchant.check("dpo", **keys).errors
    assert (error.severity, error.remedy) == ("error", "set a lower max_length")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(TrainingError, match="out of memory while passes were tried"):
        penchant.check("dpo", **keys)
