"""The rows of a file, each with its place: JSON Lines, JSON, CSV and Parquet, also with gzip.

The format is told by what a file holds, and by its name only where that leaves it open. A line
that cannot be read becomes a `Refusal`; a file that cannot be read raises `DataError`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from penchant.data.records import DataError, Refusal

# A row with its place, or a place where no row could be read.
Item = tuple[str, object] | Refusal
# Called with how many bytes of a file have been read.
Watch = Callable[[int], None]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEXT_SUFFIX = ".txt"
# The largest value that csv accepts where a C long has 32 bits.
CSV_FIELD_LIMIT = 2**31 - 1
GZIP, PARQUET, UTF8_MARK = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
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
    if form == ".json":
        yield from _json_rows(path, label, split, watch)
    elif form == ".parquet":
        yield from _parquet_rows(path, label, watch)
    elif form == ".csv":
        yield from _csv_rows(path, label, watch)
    else:
        yield from _line_rows(path, label, _text if form == TEXT_SUFFIX else _json, watch)


def data_suffix(path: Path) -> str:
    """Which of the known suffixes a name ends in, before any .gz; empty when none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    known = (*SUFFIXES, TEXT_SUFFIX)
    return suffixes[-1] if suffixes and suffixes[-1] in known else ""


def numbered(name: str, rows: Iterable[object]) -> Iterator[Item]:
    """Give every row its place, counted from 1."""
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row


# What a file holds


def _tell_format(path: Path) -> str:
    """One of .jsonl, .json, .csv, .parquet and .txt."""
    suffix = data_suffix(path)
    head = _head(path)
    if not head:
        raise DataError(f"{path} is empty; give data with at least one row")
    if head.startswith(PARQUET) or suffix == ".parquet":
        return ".parquet"
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


def _head(path: Path) -> bytes:
    """The first two lines that are not blank, of a compressed file as far as it can be read."""
    lines: list[bytes] = []
    try:
        for line in _lines(path):
            lines.append(line)
            if len(lines) == 1 and line.startswith((PARQUET, *UTF16_MARKS)):
                break
            if sum(bool(line.strip()) for line in lines) == 2:
                break
    except EOFError as error:
        if not lines:
            raise _truncated(path) from error
    return b"".join(lines).lstrip()


def _require_utf8(path: Path, head: bytes) -> None:
    if head.startswith(UTF16_MARKS) or b"\0" in head:
        raise DataError(f"{path} is UTF-16 or not text at all; {_recode(path, 'UTF-16')}")


def _recode(path: Path, encoding: str) -> str:
    return f"save it as UTF-8: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW"


# Reading


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes] | gzip.GzipFile]]:
    """The file as it lies there, whose position tells how much is read, and its content."""
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP or path.suffix.lower() == ".gz"
        raw.seek(0)
        if not packed:
            yield raw, raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield raw, stream
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is not a valid gzip file: {error}; fetch it again") from error


def _lines(path: Path, watch: Watch | None = None) -> Iterator[bytes]:
    """Yield lines, decompressed; a gzip file that was cut off ends in EOFError."""
    with _opened(path) as (raw, stream):
        for number, line in enumerate(stream):
            if watch:
                watch(raw.tell())
            yield line.removeprefix(UTF8_MARK) if not number else line


def _content(path: Path) -> bytes:
    try:
        return b"".join(_lines(path))
    except EOFError as error:
        raise _truncated(path) from error


def _truncated(path: Path) -> DataError:
    return DataError(f"{path} is a gzip file that was cut off; fetch it again")


def _cut_off(name: str, line: int) -> Refusal:
    return Refusal(
        f"{name}:{line}",
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


def _line_rows(
    path: Path, name: str, parse: Callable[[str], object], watch: Watch | None
) -> Iterator[Item]:
    """A row from each line that is not blank."""
    number = 0
    try:
        for number, line in enumerate(_lines(path, watch), start=1):
            if line.strip():
                yield _line_item(path, f"{name}:{number}", line, parse)
    except EOFError:
        yield _cut_off(name, number + 1)


def _line_item(path: Path, where: str, line: bytes, parse: Callable[[str], object]) -> Item:
    try:
        return where, parse(line.decode())
    except UnicodeDecodeError as error:
        detail = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        return Refusal(where, "invalid UTF-8", f"{detail}; {_recode(path, 'LATIN1')}")
    except json.JSONDecodeError as error:
        return Refusal(where, "malformed JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or nesting beyond any message.
        return Refusal(where, "malformed JSON", str(error))


_json = json.loads


def _text(line: str) -> object:
    """A line of plain text is a prompt."""
    return {"prompt": line.rstrip("\r\n")}


def _json_rows(path: Path, name: str, split: str, watch: Watch | None) -> Iterator[Item]:
    content = _content(path)
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}; {_recode(path, 'LATIN1')}"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    rows = _json_list(path, value, split)
    yield from numbered(name, _watched(rows, len(rows), path, watch))


def _json_list(path: Path, value: object, split: str) -> Sequence[object]:
    """The rows of a JSON document: a list, a list within an object, or one row alone."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a list of objects, got a value")
    lists = [key for key, rows in value.items() if _is_rows(rows)]
    named = [key for key in ("data", split) if key in lists] or (lists if len(lists) == 1 else [])
    if len(dict.fromkeys(named)) == 1:
        return list(value[named[0]])
    if lists:
        raise DataError(
            f"{path} must hold a list of objects, or an object with one list under 'data' or "
            f"'{split}', got an object with {', '.join(map(str, value))}; set split to one of "
            f"{', '.join(lists)}"
        )
    return _from_columns(value) or [value]


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


def _csv_rows(path: Path, name: str, watch: Watch | None) -> Iterator[Item]:
    previous_limit = csv.field_size_limit(CSV_FIELD_LIMIT)
    # Bytes that are not UTF-8 become surrogates, which refuse the row they are in, not the file.
    text = (line.decode(errors="surrogateescape") for line in _lines(path, watch))
    reader = csv.reader(text, strict=True, delimiter=_delimiter(path))
    line = 1
    try:
        header = next(filter(None, reader), [])
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                yield _csv_item(path, f"{name}:{line}", header, cells)
            line = reader.line_num + 1
    except EOFError:
        yield _cut_off(name, line)
    except csv.Error as error:
        # After a misplaced quote, no later cell can be told from text.
        raise DataError(
            f"{path} is not well-formed CSV in the row at line {line}: {error}; "
            "double the quotes within a quoted cell"
        ) from error
    finally:
        csv.field_size_limit(previous_limit)


def _delimiter(path: Path) -> str:
    """The comma, semicolon or tab that is most frequent in the headings, outside quotes."""
    heading = _head(path).partition(b"\n")[0].decode(errors="surrogateescape")
    bare = re.sub(r'"[^"]*"', "", heading)
    return max(",;\t", key=bare.count)


def _csv_item(path: Path, where: str, header: list[str], cells: list[str]) -> Item:
    if len(cells) > len(header):
        detail = f"{len(cells)} cells under {len(header)} headings; quote cells that hold a comma"
        return Refusal(where, "too many cells", detail)
    for field, cell in zip(header, cells, strict=False):
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return Refusal(where, "invalid UTF-8", f"'{field}'; {_recode(path, 'LATIN1')}")
    return where, dict(zip(header, cells, strict=False))


def _parquet_rows(path: Path, name: str, watch: Watch | None) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(_content(path)) if packed else path) as file:
            rows = (
                row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist()
            )
            yield from numbered(name, _watched(rows, file.metadata.num_rows, path, watch))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
