"""Which keys may differ where a run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from penchant.core.errors import TrainingError
from penchant.training.same_run import require_same

THEN: dict[str, Any] = {"beta": 0.1, "cache_dir": None, "token_cache": True}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(THEN))
    return tmp_path


def test_where_token_ids_are_kept_may_differ(run: Path) -> None:
    require_same(run, {**THEN, "cache_dir": "elsewhere", "token_cache": False})


def test_what_changes_the_weights_is_named(run: Path) -> None:
    with pytest.raises(TrainingError, match=r"\(beta: 0\.1 then, 0\.2 now\)"):
        require_same(run, {**THEN, "token_cache": False, "beta": 0.2})
