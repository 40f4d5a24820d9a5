"""The rows of a file, each with its place: JSON Lines, JSON, CSV and Parquet, also with .gz.

A line that cannot be read becomes a `Refusal`; a file that cannot be read raises `DataError`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from penchant.data.records import DataError, Refusal
from penchant.data.rows import labels, margins
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import FIELDS as BESIDE_FIELDS

# A row with its place, or a place where no row could be read.
Item = tuple[str, object] | Refusal
# Told how many bytes of a file are behind the rows that were read.
Watch = Callable[[int], None]

FIELDS = frozenset(
    (*formats.FIELDS, *labels.FIELDS, *margins.FIELDS, *BESIDE_FIELDS, "conversations")
)
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
TEXT_SUFFIX = ".txt"
MESSAGES_CELL = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]\s*:")
# The largest value that csv accepts where a C long has 32 bits.
CSV_FIELD_LIMIT = 2**31 - 1


def open_file(
    path: Path, split: str, *, prompts: bool = False, watch: Watch | None = None
) -> Iterable[Item]:
    """Read the rows of a file in the format that its name says.

    Args:
        path: an existing file.
        split: the key of the rows in a JSON object that has several.
        prompts: keep every column of a table, and take a .txt file as one prompt a line.
        watch: for a progress bar.

    Returns:
        Every row or refused line, with its line or number.

    Raises:
        DataError: the name says no format, the file is empty or not in its format; in part only
            once the rows are read.
    """
    suffix = data_suffix(path, prompts=prompts)
    if not suffix:
        known = (*SUFFIXES, TEXT_SUFFIX) if prompts else SUFFIXES
        raise DataError(
            f"cannot tell the format of {path} from its name; expected a name that ends in "
            f"{', '.join(known)}, or one of these with .gz"
        )
    if not path.stat().st_size:
        raise _empty(path)
    if suffix == ".json":
        return _json_rows(path, split, watch)
    if suffix == ".parquet":
        return _parquet_rows(path, prompts, watch)
    return {".jsonl": _jsonl_rows, ".csv": _csv_rows, TEXT_SUFFIX: _text_rows}[suffix](path, watch)


def data_suffix(path: Path, *, prompts: bool = False) -> str:
    """Which of the known suffixes a name ends in, but for .gz; empty when none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    known = (*SUFFIXES, TEXT_SUFFIX) if prompts else SUFFIXES
    return suffixes[-1] if suffixes and suffixes[-1] in known else ""


def numbered(name: str, rows: Iterable[object]) -> Iterator[Item]:
    """Give every row its place, counted from 1."""
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row


def _empty(path: Path) -> DataError:
    return DataError(f"{path} is empty; give data with at least one row")


def _lines(path: Path, watch: Watch | None = None) -> Iterator[bytes]:
    """Yield lines, decompressed; a gzip file that was cut off ends in EOFError."""
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            stream: IO[bytes] | gzip.GzipFile = raw
            if path.suffix.lower() == ".gz":
                stream = stack.enter_context(gzip.GzipFile(fileobj=raw))
            for number, line in enumerate(stream):
                if watch:
                    watch(raw.tell())
                yield line.removeprefix(b"\xef\xbb\xbf") if not number else line
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a valid gzip file: {error}; fetch it again") from error


def _content(path: Path) -> bytes:
    try:
        return b"".join(_lines(path))
    except EOFError as error:
        raise DataError(f"{path} is a gzip file that was cut off; fetch it again") from error


def _cut_off(path: Path, line: int) -> Refusal:
    return Refusal(
        f"{path.name}:{line}",
        "gzip file cut off",
        "the compressed file ends within this line; what follows is lost, so fetch it again",
    )


def _watched(
    rows: Iterable[object], num_rows: int, path: Path, watch: Watch | None
) -> Iterator[object]:
    """Rows of a file that is not read by lines: each is as far as any other."""
    size = path.stat().st_size
    for number, row in enumerate(rows, start=1):
        if watch:
            watch(size * number // num_rows)
        yield row


def _jsonl_rows(path: Path, watch: Watch | None) -> Iterator[Item]:
    number = 0
    try:
        for number, line in enumerate(_lines(path, watch), start=1):
            if line.strip():
                yield _jsonl_item(f"{path.name}:{number}", line)
    except EOFError:
        yield _cut_off(path, number + 1)


def _jsonl_item(where: str, line: bytes) -> Item:
    try:
        return where, json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(where, line, error)
    except json.JSONDecodeError as error:
        return Refusal(where, "malformed JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or nesting beyond any message.
        return Refusal(where, "malformed JSON", str(error))


def _not_utf8(where: str, line: bytes, error: UnicodeDecodeError) -> Refusal:
    detail = f"byte 0x{line[error.start]:02x} at column {error.start + 1}; save it as UTF-8"
    return Refusal(where, "invalid UTF-8", detail)


def _text_rows(path: Path, watch: Watch | None) -> Iterator[Item]:
    """Each line a row with a `prompt`; blank lines separate nothing and are passed over."""
    number = 0
    try:
        for number, line in enumerate(_lines(path, watch), start=1):
            if line.strip():
                yield _text_item(f"{path.name}:{number}", line)
    except EOFError:
        yield _cut_off(path, number + 1)


def _text_item(where: str, line: bytes) -> Item:
    try:
        return where, {"prompt": line.decode().rstrip("\r\n")}
    except UnicodeDecodeError as error:
        return _not_utf8(where, line, error)


def _json_rows(path: Path, split: str, watch: Watch | None) -> Iterator[Item]:
    content = _content(path)
    if not content.strip():
        raise _empty(path)
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        # A second value on a line of its own is what JSON Lines look like here.
        hint = "; it looks like JSON Lines: name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}{hint}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    rows = _json_list(path, value, split)
    return numbered(path.name, _watched(rows, len(rows), path, watch))


def _json_list(path: Path, value: object, split: str) -> Sequence[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [value[key] for key in {"data", split} if isinstance(value.get(key), list)]
        if len(lists) == 1:
            return list(lists[0])
    has = f"an object with {', '.join(map(str, value))}" if isinstance(value, dict) else "a value"
    raise DataError(
        f"{path} must hold a list of objects, or an object with one list under 'data' or "
        f"'{split}', got {has}"
    )


def _csv_rows(path: Path, watch: Watch | None) -> Iterator[Item]:
    previous_limit = csv.field_size_limit(CSV_FIELD_LIMIT)
    # Bytes that are not UTF-8 become surrogates, which refuse the row they are in, not the file.
    text = (line.decode(errors="surrogateescape") for line in _lines(path, watch))
    reader = csv.reader(text, strict=True)
    line = 1
    try:
        header = next(filter(None, reader), [])
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                yield _csv_item(f"{path.name}:{line}", header, cells)
            line = reader.line_num + 1
    except EOFError:
        yield _cut_off(path, line)
    except csv.Error as error:
        # After a misplaced quote, no later cell can be told from text.
        raise DataError(
            f"{path} is not well-formed CSV in the row at line {line}: {error}; "
            "double the quotes within a quoted cell"
        ) from error
    finally:
        csv.field_size_limit(previous_limit)


def _csv_item(where: str, header: list[str], cells: list[str]) -> Item:
    if len(cells) > len(header):
        detail = f"{len(cells)} cells under {len(header)} headings; quote cells that hold a comma"
        return Refusal(where, "too many cells", detail)
    row: dict[str, object] = {}
    for field, cell in zip(header, cells, strict=False):
        try:
            row[field] = _csv_value(field, cell)
        except ValueError as error:
            detail = f"'{field}' holds messages, but not as JSON: {error}; write json.dumps"
            return Refusal(where, "malformed JSON", detail)
    return where, row


def _csv_value(field: str, cell: str) -> object:
    """What a cell stands for: a cell holds only text, and none when it is blank."""
    if field in margins.NUMBER_FIELDS:
        return _csv_number(cell)
    if field == "votes":
        with suppress(ValueError):
            return json.loads(cell)
    if field in FIELDS and MESSAGES_CELL.match(cell):
        return json.loads(cell)
    return cell


def _csv_number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell.strip() else None
    except ValueError:
        return cell


def _parquet_rows(path: Path, every: bool, watch: Watch | None) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    packed = path.suffix.lower() == ".gz"
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(_content(path)) if packed else path) as file:
            names = file.schema_arrow.names
            known = [name for name in names if every or name in FIELDS]
            batches = file.iter_batches(batch_size=1024, columns=known or None)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from numbered(path.name, _watched(rows, file.metadata.num_rows, path, watch))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
