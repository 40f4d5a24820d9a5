"""The rows of a file, each with its place: JSON Lines, JSON, CSV, Parquet, Arrow, also compressed.

The format is told by what a file holds, and by its name only where that leaves it open. A line
that cannot be read becomes a `Refusal`; a file that cannot be read raises `DataError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from penchant.data.lines import (
    PARQUET,
    UTF16_MARKS,
    Item,
    Watch,
    first_lines,
    read_lines,
    unique_fields,
)
from penchant.data.records import DataError, Refusal

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
TEXT_SUFFIX = ".txt"
ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
LFS_POINTER = b"version https://git-lfs.github.com"


def open_file(
    path: Path, split: str = "train", *, name: str | None = None, watch: Watch | None = None
) -> Iterator[Item]:
    """Read the rows of a file.

    Args:
        path: an existing file.
        split: the key of the rows in a JSON object that has several lists.
        name: what places call the file; default: its own name.
        watch: for a progress bar.

    Yields:
        Every row or refused line, with its line or number.

    Raises:
        DataError: the format cannot be told, or the file is empty or not in its format.
    """
    label = name or path.name
    form = _tell_format(path)
    if form in (".jsonl", TEXT_SUFFIX):
        yield from _line_rows(path, label, _text if form == TEXT_SUFFIX else _json, watch)
        return
    from penchant.data import tables

    if form == ".json":
        yield from tables.json_rows(path, label, split, watch)
    elif form == ".parquet":
        yield from tables.parquet_rows(path, label, watch)
    elif form == ".arrow":
        yield from tables.arrow_rows(path, label, watch)
    else:
        yield from tables.csv_rows(path, label, watch)


def data_suffix(path: Path) -> str:
    """Which of the known suffixes a name ends in, before any of a compression; else empty."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    known = (*SUFFIXES, TEXT_SUFFIX)
    return suffixes[-1] if suffixes and suffixes[-1] in known else ""


# What a file holds


def _tell_format(path: Path) -> str:
    """One of .jsonl, .json, .csv, .parquet, .arrow and .txt."""
    suffix = data_suffix(path)
    head = first_lines(path)
    if not head:
        raise DataError(f"{path} is empty; give data with at least one row")
    if head.startswith(PARQUET) or suffix == ".parquet":
        return ".parquet"
    if head.startswith(ARROW):
        return ".arrow"
    _require_utf8(path, head)
    if head.startswith(LFS_POINTER):
        raise DataError(f"{path} is a pointer of Git LFS, not the data; fetch it: git lfs pull")
    if suffix in (".csv", ".tsv"):
        return ".csv"
    first, _, rest = head.lstrip().partition(b"\n")
    second = rest.lstrip().partition(b"\n")[0]
    if suffix == TEXT_SUFFIX:
        return ".jsonl" if isinstance(_loaded(first), dict) else TEXT_SUFFIX
    if first[:1] in (b"[", b"{"):
        return ".json" if _is_document(first, second, suffix) else ".jsonl"
    if not suffix:
        raise DataError(
            f"cannot tell the format of {path}, from neither its content nor its name; expected "
            f"JSON, Parquet, or a name that ends in {', '.join((*SUFFIXES, TEXT_SUFFIX))}"
        )
    return ".json" if suffix == ".json" else ".jsonl"


def _is_document(first: bytes, second: bytes, suffix: str) -> bool:
    """Whether a text that opens as JSON is one value, rather than one value on each line."""
    value = _loaded(first)
    if value is None:
        return suffix == ".json" or first.strip() in (b"[", b"{") or first.startswith(b"[")
    if second:
        return False
    return isinstance(value, list) or suffix == ".json" or isinstance(value.get("data"), list)


def _loaded(line: bytes) -> Any:
    """The list or object that a line holds; None when it holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


def _require_utf8(path: Path, head: bytes) -> None:
    if head.startswith(UTF16_MARKS) or b"\0" in head:
        from penchant.data.other_formats import refuse

        refuse(path, head)


# Reading


def _line_rows(
    path: Path, name: str, parse: Callable[[str], object], watch: Watch | None
) -> Iterator[Item]:
    """A row from each line that is not blank."""
    number = 0
    try:
        for number, line in enumerate(read_lines(path, watch), start=1):
            if line.strip():
                yield _line_item(path, f"{name}:{number}", line, parse)
    except EOFError:
        from penchant.data.broken_files import cut_off

        yield cut_off(name, number + 1)


def _line_item(path: Path, where: str, line: bytes, parse: Callable[[str], object]) -> Item:
    try:
        return where, parse(line.decode())
    except UnicodeDecodeError as error:
        from penchant.data.broken_files import recode

        detail = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        return Refusal(where, "invalid UTF-8", f"{detail}; {recode(path, 'LATIN1')}")
    except json.JSONDecodeError as error:
        return Refusal(where, "malformed JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or nesting beyond any message.
        return Refusal(where, "malformed JSON", str(error))


def _json(line: str) -> object:
    """A line's value; of a text that is an object written as JSON once more, that object."""
    value = json.loads(line, object_pairs_hook=unique_fields)
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return json.loads(value, object_pairs_hook=unique_fields)
    return value


def _text(line: str) -> object:
    """A line of plain text is a prompt."""
    return {"prompt": line.rstrip("\r\n")}
