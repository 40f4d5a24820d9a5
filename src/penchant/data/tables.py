"""The rows of files that are not read line by line: JSON documents, CSV, Parquet and Arrow."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from penchant.data.broken_files import cut_off, recode, truncated
from penchant.data.json_cells import unfilled
from penchant.data.lines import (
    GZIP,
    Item,
    Watch,
    first_lines,
    numbered,
    read_lines,
    unique_fields,
)
from penchant.data.records import DataError, Refusal, SplitError

# The largest value that csv accepts where a C long has 32 bits.
CSV_FIELD_LIMIT = 2**31 - 1
BLANK = re.compile(r"\s+")


def json_rows(path: Path, name: str, split: str, watch: Watch | None) -> Iterator[Item]:
    """The rows of one JSON document.

    Raises:
        DataError: it is not JSON, not UTF-8, or holds no list of rows that could be told.
    """
    content = _content(path)
    try:
        value = json.loads(content.decode(), object_pairs_hook=unique_fields)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}; {recode(path, 'LATIN1')}"
        ) from error
    except json.JSONDecodeError as error:
        value = _in_a_row(content.decode())
        if value is None:
            raise DataError(
                f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    rows = _json_list(path, value, split)
    if not rows:
        raise DataError(f"{path} is an empty list; give data with at least one row")
    yield from numbered(name, _watched(rows, len(rows), path, watch))


def _in_a_row(text: str) -> list[object] | None:
    """The objects of a text that holds one after another, each over several lines; else None."""
    decoder = json.JSONDecoder(object_pairs_hook=unique_fields)
    rows: list[object] = []
    at = 0
    while at < len(text):
        try:
            row, at = decoder.raw_decode(text, at)
        except ValueError:
            return None
        rows.append(row)
        between = BLANK.match(text, at)
        at = between.end() if between else at
    return rows if len(rows) > 1 and all(isinstance(row, dict) for row in rows) else None


def _json_list(path: Path, value: object, split: str) -> Sequence[object]:
    """The rows of a JSON document: a list, a list within an object, or one row alone."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a list of objects, got a value")
    lists = [key for key, rows in value.items() if _is_rows(rows)]
    named = [key for key in (split, "data", "rows") if key in lists]
    if named or len(lists) == 1:
        return list(value[(named or lists)[0]])
    if lists:
        raise SplitError(f"{path} holds several lists of rows, and none of '{split}'", lists)
    return _from_columns(value) or _by_key(value) or [value]


def _by_key(value: dict[str, Any]) -> list[object]:
    """The rows of an object that names each of several by a key; none where it is not that."""
    rows = list(value.values())
    alike = len(rows) > 1 and all(isinstance(row, dict) and row for row in rows)
    return rows if alike and len({tuple(sorted(row)) for row in rows}) == 1 else []


def _from_columns(value: dict[str, Any]) -> list[object]:
    """The rows of a table kept by column; none where an object is not that."""
    columns = list(value.values())
    if not all(isinstance(column, list) for column in columns):
        return []
    plain = all(not isinstance(cell, list | dict) for column in columns for cell in column)
    if not plain or len({len(column) for column in columns}) != 1:
        return []
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _is_rows(value: object) -> bool:
    """Whether a value is a list of rows, rather than messages or votes."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and not first.keys() & {"role", "from"}


def csv_rows(path: Path, name: str, watch: Watch | None) -> Iterator[Item]:
    """The rows under the headings of a CSV or TSV file.

    Raises:
        DataError: a quote stands where none may.
    """
    previous_limit = csv.field_size_limit(CSV_FIELD_LIMIT)
    # Bytes that are not UTF-8 become surrogates, which refuse the row they are in, not the file.
    text = (line.decode(errors="surrogateescape") for line in read_lines(path, watch))
    delimiter = _delimiter(path)
    reader = csv.reader(text, strict=True, delimiter=delimiter)
    line = 1
    try:
        header = next(filter(lambda cells: not _says_delimiter(cells), reader), [])
        header = [name.strip() for name in header]
        _require_distinct(path, header)
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                yield _csv_item(path, f"{name}:{line}", header, cells)
            line = reader.line_num + 1
    except EOFError:
        yield cut_off(name, line)
    except csv.Error as error:
        # After a misplaced quote, no later cell can be told from text.
        raise DataError(
            f"{path} is not well-formed CSV in the row at line {line}: {error}; "
            "double the quotes within a quoted cell"
        ) from error
    finally:
        csv.field_size_limit(previous_limit)


def _require_distinct(path: Path, header: list[str]) -> None:
    """Of two columns with one name, one would be lost."""
    if twice := next((one for one in header if one and header.count(one) > 1), None):
        raise DataError(f"{path} has two columns named '{twice}'; give one of them another name")


def _says_delimiter(cells: list[str]) -> bool:
    """Whether a line is blank, or Excel's `sep=;` before the headings."""
    return not cells or cells[0].startswith("sep=")


def _delimiter(path: Path) -> str:
    """What Excel's `sep=` names, or what is most frequent in the headings, outside quotes."""
    heading = first_lines(path).partition(b"\n")[0].decode(errors="surrogateescape")
    if said := re.fullmatch(r"sep=([,;\t|])\s*", heading):
        return said[1]
    bare = re.sub(r'"[^"]*"', "", heading)
    return max(",;\t|", key=bare.count)


def _csv_item(path: Path, where: str, header: list[str], cells: list[str]) -> Item:
    if len(cells) > len(header):
        detail = f"{len(cells)} cells under {len(header)} headings; quote cells that hold a comma"
        return Refusal(where, "too many cells", detail)
    for field, cell in zip(header, cells, strict=False):
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return Refusal(where, "invalid UTF-8", f"'{field}'; {recode(path, 'LATIN1')}")
    return where, dict(zip(header, cells, strict=False))


def parquet_rows(path: Path, name: str, watch: Watch | None) -> Iterator[Item]:
    """The rows of a Parquet file.

    Raises:
        DataError: it is not readable.
    """
    import pyarrow
    import pyarrow.parquet

    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
    source = io.BytesIO(_content(path)) if packed else path
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            rows = (
                unfilled(row)
                for batch in file.iter_batches(batch_size=1024)
                for row in batch.to_pylist()
            )
            yield from numbered(name, _watched(rows, file.metadata.num_rows, path, watch))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def arrow_rows(path: Path, name: str, watch: Watch | None) -> Iterator[Item]:
    """The rows of an Arrow file, of a stream or of Feather.

    Raises:
        DataError: it is not readable.
    """
    import pyarrow
    from pyarrow import feather, ipc

    content = io.BytesIO(_content(path))
    try:
        if content.getvalue().startswith(b"ARROW1"):
            table = feather.read_table(content)
        else:
            table = ipc.open_stream(content).read_all()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Arrow file: {error}") from error
    rows = (unfilled(row) for batch in table.to_batches() for row in batch.to_pylist())
    yield from numbered(name, _watched(rows, len(table), path, watch))


def _watched(
    rows: Iterable[object], num_rows: int, path: Path, watch: Watch | None
) -> Iterator[object]:
    """Rows of a file that is not read by lines: each is as far as any other."""
    size = path.stat().st_size
    for number, row in enumerate(rows, start=1):
        if watch:
            watch(size * number // num_rows)
        yield row


def _content(path: Path) -> bytes:
    """The whole file, decompressed.

    Raises:
        DataError: a compressed file that was cut off.
    """
    try:
        return b"".join(read_lines(path))
    except EOFError as error:
        raise truncated(path) from error
