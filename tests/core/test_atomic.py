"""Several processes may write one file: none disturbs another, and none leaves anything behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from penchant.core import atomic
from penchant.core.atomic import ABANDONED, flush_to_disk, write_atomically


def test_writers_of_one_file_do_not_take_each_others_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tasks of an array that start together: one writes and ends while another writes."""
    file = tmp_path / "vary.json"

    def interrupted(path: Path) -> None:
        monkeypatch.setattr(atomic, "flush_to_disk", flush_to_disk)
        write_atomically(file, "of another")
        assert file.read_text() == "of another"
        flush_to_disk(path)

    monkeypatch.setattr(atomic, "flush_to_disk", interrupted)
    write_atomically(file, "its own")
    assert file.read_text() == "its own"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_must_be_new_is_that_of_the_first_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "answers.jsonl"

    def interrupted(path: Path) -> None:
        monkeypatch.setattr(atomic, "flush_to_disk", flush_to_disk)
        write_atomically(file, "of another", new=True)
        flush_to_disk(path)

    monkeypatch.setattr(atomic, "flush_to_disk", interrupted)
    with pytest.raises(FileExistsError, match="not overwritten"):
        write_atomically(file, "its own", new=True)
    assert file.read_text() == "of another"
    assert list(tmp_path.iterdir()) == [file]


def test_what_killed_writers_left_of_the_same_file_is_removed(tmp_path: Path) -> None:
    names = (".a.json.partial", ".a.json.0f.partial", ".a.json.1f.partial", ".b.json.0f.partial")
    left, older, recent, other = (tmp_path / name for name in names)
    for path in (left, older, recent, other):
        path.write_text("half")
    for path in (left, older, other):
        os.utime(path, (0, time.time() - ABANDONED - 60))
    write_atomically(tmp_path / "a.json", "{}")
    assert {*tmp_path.iterdir()} == {tmp_path / "a.json", recent, other}


def test_a_write_that_fails_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "{}")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "\ud800")
    assert file.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [file]
