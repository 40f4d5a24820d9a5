"""Read preference pairs from a file, a saved or loaded dataset, a list, or the Hugging Face hub.

A row that cannot be used is refused and counted, with its line; a source that cannot be used at
all raises `DataError`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from penchant.data.formats import FIELDS, LAYOUTS, Layout, RowError, recognise, to_pair
from penchant.data.records import (
    NUM_EXAMPLES,
    DataError,
    Pair,
    PairData,
    Refusal,
    counted,
    describe_refusals,
    fingerprint,
)

if TYPE_CHECKING:
    import datasets

    Source: TypeAlias = (
        str | Path | datasets.Dataset | datasets.DatasetDict | list[dict[str, object]]
    )

# A row with its place, or a place where no row could be read.
Item = tuple[str, object] | Refusal

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
MESSAGES_CELL = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]\s*:")
# The largest value that csv accepts where a C long has 32 bits.
CSV_FIELD_LIMIT = 2**31 - 1


class MissingDataError(DataError, FileNotFoundError):
    """Nothing is at the path that was given."""


def read_pairs(source: Source, *, strict: bool = False, split: str = "train") -> PairData:
    """Read preference pairs, in any recognised layout.

    Args:
        source: a `.jsonl`, `.json`, `.csv` or `.parquet` file (each also with `.gz`), a folder
            written by `Dataset.save_to_disk`, a `datasets.Dataset`, a list of dicts, or the id
            of a dataset on the hub, such as `owner/name`, when no such path exists.
        strict: raise when any row is refused, instead of counting it.
        split: which split to take, where the source has several.

    Returns:
        The pairs, with every row that was left out.

    Raises:
        DataError: when nothing can be read, no row is usable, or `strict` and a row is refused.
        MissingDataError: a `DataError` and a `FileNotFoundError`, when the path does not exist.
        TypeError: when the source is of another type.
    """
    name, items = _open_source(source, split)
    data = _collect(items, name)
    if strict and data.refused:
        shown = "\n".join(f"  {refusal}" for refusal in data.refused[:NUM_EXAMPLES])
        refused = counted(len(data.refused), "refused row")
        raise DataError(
            f"strict allows no refusal, and {name} has {refused}; "
            f"correct or remove what is refused. The first:\n{shown}"
        )
    return data


def _collect(items: Iterable[Item], name: str) -> PairData:
    """Turn rows into pairs; the first row that fits a layout decides it for the rest."""
    pairs: list[Pair] = []
    refused: list[Refusal] = []
    ties = 0
    layout: Layout | None = None
    for item in items:
        if isinstance(item, Refusal):
            refused.append(item)
            continue
        where, row = item
        layout = layout or recognise(row)
        try:
            pair = to_pair(row, layout, where)
        except RowError as error:
            refused.append(Refusal(where, error.reason, error.detail))
            continue
        if pair is None:
            ties += 1
        else:
            pairs.append(pair)
    if not pairs or layout is None:
        raise _nothing_usable(name, refused, ties)
    return PairData(pairs, refused, ties, layout.name, name, fingerprint(pairs))


def _nothing_usable(name: str, refused: list[Refusal], ties: int) -> DataError:
    if not refused and not ties:
        return DataError(f"{name} holds no rows; give data with at least one preference pair")
    layouts = "\n".join(f"  {layout.name}" for layout in LAYOUTS)
    return DataError(
        f"no row of {name} is a preference pair: {len(refused)} refused, {counted(ties, 'tie')}\n"
        f"{describe_refusals(refused)}\nrecognised layouts:\n{layouts}"
    )


def _open_source(source: object, split: str) -> tuple[str, Iterable[Item]]:
    """Return how to call a source, and its rows."""
    if isinstance(source, str | Path):
        return _open_path(source, split)
    if isinstance(source, list | tuple):
        return "the list", _numbered("list", source)
    # A source can only be a dataset if its maker has imported the library, which is slow.
    if library := sys.modules.get("datasets"):
        if isinstance(source, library.DatasetDict):
            source = _take_split(source, split, "the dataset")
        if isinstance(source, library.Dataset):
            return "the dataset", _dataset_rows("dataset", source)
    raise TypeError(
        "data must be a path, a hub id, a datasets.Dataset or a list of dicts, "
        f"got {type(source).__name__}"
    )


def _open_path(source: str | Path, split: str) -> tuple[str, Iterable[Item]]:
    path = Path(source).expanduser()
    if path.is_dir():
        return str(source), _dataset_rows(path.name, _load_folder(path, split))
    if not path.exists():
        # Path("a/b") is a path by its type: only a string can be meant as a hub id.
        if isinstance(source, str) and HUB_ID.fullmatch(source) and not _data_suffix(path):
            return source, _dataset_rows(source, _load_hub(source, path, split))
        raise MissingDataError(_no_such_file(path))
    readers = {
        ".jsonl": _jsonl_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    suffix = _data_suffix(path)
    if suffix == ".json":
        return str(source), _json_rows(path, split)
    if suffix not in readers:
        raise DataError(
            f"cannot tell the format of {source} from its name; expected a name that ends in "
            f"{', '.join(SUFFIXES)}, or one of these with .gz"
        )
    if not path.stat().st_size:
        raise DataError(f"{source} is empty; give data with at least one preference pair")
    return str(source), readers[suffix](path)


def _data_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def _no_such_file(path: Path) -> str:
    message = f"no such file: {path}"
    if not path.parent.is_dir():
        return f"{message} (the folder {path.parent} does not exist either)"
    names = [entry.name for entry in path.parent.iterdir()]
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if nearest:
        message += f"; did you mean {path.parent / nearest[0]}?"
    return message


def _numbered(label: str, rows: Iterable[object]) -> Iterator[Item]:
    for number, row in enumerate(rows, start=1):
        yield f"{label}:{number}", row


# Datasets


def _dataset_rows(label: str, dataset: datasets.Dataset) -> Iterator[Item]:
    # Other columns may be images or audio, which would be decoded for nothing.
    known = [column for column in dataset.column_names if column in FIELDS]
    plain = dataset.with_format(None)
    yield from _numbered(label, plain.select_columns(known) if known else plain)


def _take_split(dataset: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    if split not in dataset:
        has = ", ".join(map(str, dataset))
        raise DataError(f"{name} has no split '{split}'; it has: {has}; set split to one of these")
    return dataset[split]


def _load_folder(path: Path, split: str) -> datasets.Dataset:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        files = [entry.name for entry in sorted(path.iterdir()) if _data_suffix(entry)]
        raise DataError(
            f"{path} is a folder that Dataset.save_to_disk did not write; give a file"
            + (f" in it: {', '.join(files[:5])}" if files else f" ({', '.join(SUFFIXES)})")
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return _take_split(loaded, split, str(path))
    return loaded


def _load_hub(name: str, path: Path, split: str) -> datasets.Dataset:
    import datasets

    try:
        loaded: datasets.Dataset = datasets.load_dataset(name, split=split)
    except Exception as error:
        # The library raises anything here: its own errors, those of HTTP clients, OSError.
        raise DataError(
            f"{_no_such_file(path)}\nand the hub could not serve '{name}' (split '{split}') "
            f"either: {type(error).__name__}: {error}"
        ) from error
    return loaded


# Files


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines, decompressed; a gzip file that was cut off ends in EOFError."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream):
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


def _jsonl_rows(path: Path) -> Iterator[Item]:
    number = 0
    try:
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                yield _jsonl_item(f"{path.name}:{number}", line)
    except EOFError:
        yield _cut_off(path, number + 1)


def _jsonl_item(where: str, line: bytes) -> Item:
    try:
        return where, json.loads(line.decode())
    except UnicodeDecodeError as error:
        detail = f"byte 0x{line[error.start]:02x} at column {error.start + 1}; save it as UTF-8"
        return Refusal(where, "invalid UTF-8", detail)
    except json.JSONDecodeError as error:
        return Refusal(where, "malformed JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or nesting beyond any message.
        return Refusal(where, "malformed JSON", str(error))


def _json_rows(path: Path, split: str) -> Iterator[Item]:
    content = _content(path)
    if not content.strip():
        raise DataError(f"{path} is empty; give data with at least one preference pair")
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
    return _numbered(path.name, _json_list(path, value, split))


def _json_list(path: Path, value: object, split: str) -> list[object]:
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


def _csv_rows(path: Path) -> Iterator[Item]:
    previous_limit = csv.field_size_limit(CSV_FIELD_LIMIT)
    # Bytes that are not UTF-8 become surrogates, which refuse the row they are in, not the file.
    text = (line.decode(errors="surrogateescape") for line in _lines(path))
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
    row: dict[str, object] = dict(zip(header, cells, strict=False))
    for field, cell in zip(header, cells, strict=False):
        if field in FIELDS and MESSAGES_CELL.match(cell):
            try:
                row[field] = json.loads(cell)
            except ValueError as error:
                detail = f"'{field}' holds messages, but not as JSON: {error}; write json.dumps"
                return Refusal(where, "malformed JSON", detail)
    return where, row


def _parquet_rows(path: Path) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    packed = path.suffix.lower() == ".gz"
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(_content(path)) if packed else path) as file:
            names = file.schema_arrow.names
            known = [name for name in names if name in FIELDS]
            batches = file.iter_batches(batch_size=1024, columns=known or None)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from _numbered(path.name, rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
