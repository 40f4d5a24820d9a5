"""A new file holds the rows of one writer, or is not there; nothing is overwritten."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from penchant.core.atomic import ABANDONED
from penchant.data.records import DataError
from penchant.data.writing import SUFFIXES, new_file

FORMATS = pytest.mark.parametrize("suffix", SUFFIXES)
ROW, OTHER = {"by": "the one"}, {"by": "the other"}


def write(
    output: Path, *rows: dict[str, Any], meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Write rows, and let something happen before the file is finished."""
    with new_file(output) as writer:
        for row in rows:
            writer.write(row)
        meanwhile()


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(parquet.read_table(path).to_pylist())
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.splitlines()]


@FORMATS
def test_of_two_writers_of_one_file_the_first_to_end_makes_it(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    with pytest.raises(DataError, match=r"cannot write .*: it was made meanwhile"):
        write(output, ROW, ROW, meanwhile=lambda: write(output, OTHER))
    assert rows_of(output) == [OTHER]
    assert list(tmp_path.iterdir()) == [output]


@FORMATS
def test_a_writer_that_fails_takes_nothing_from_another(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"

    def fail() -> None:
        raise KeyboardInterrupt

    def other() -> None:
        with pytest.raises(KeyboardInterrupt):
            write(output, OTHER, meanwhile=fail)

    write(output, ROW, ROW, meanwhile=other)
    assert rows_of(output) == [ROW, ROW]
    assert list(tmp_path.iterdir()) == [output]


def test_a_file_of_anybody_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="not overwritten; set output"):
        write(output, ROW, meanwhile=lambda: output.write_text("precious"))
    assert output.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [output]


@FORMATS
def test_what_killed_writers_left_of_the_same_file_is_removed(tmp_path: Path, suffix: str) -> None:
    for name in ("0f.partial", "0f.table.partial"):
        left = tmp_path / f".out{suffix}.{name}"
        left.write_bytes(b"half")
        os.utime(left, (0, time.time() - ABANDONED - 60))
    write(tmp_path / f"out{suffix}", ROW)
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_columns_of_several_types_leave_no_table_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"several types.*give output a name in \.jsonl"):
        write(tmp_path / "out.parquet", {"a": 1}, {"a": {"b": 2}})
    assert list(tmp_path.iterdir()) == []
