"""Trying whether a file can be written disturbs nobody who tries or writes the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.core.errors import ConfigError
from penchant.core.outputs import require_writable


def test_two_that_try_one_file_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, touch = tmp_path / "page.html", Path.touch

    def interrupted(path: Path) -> None:
        touch(path)
        monkeypatch.setattr(Path, "touch", touch)
        require_writable(file, "html")

    monkeypatch.setattr(Path, "touch", interrupted)
    require_writable(file, "html")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; set html to a file"):
        require_writable(tmp_path, "html")
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match=r"cannot write .*page\.html: .*; set html"):
        require_writable(tmp_path / "file" / "page.html", "html")
