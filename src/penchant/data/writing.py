"""Write rows to a new file, JSON Lines or Parquet, that is there whole or not at all."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from penchant.core.atomic import replacing
from penchant.core.screen import track
from penchant.data.records import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
BATCH_ROWS = 1024


class RowWriter:
    """Writes rows one by one, and counts them."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self._stream = stream
        self.count = 0

    def write(self, row: Mapping[str, object]) -> None:
        """Add a row."""
        self._stream.write(encoded(row))
        self.count += 1


def encoded(row: Mapping[str, object]) -> bytes:
    """A row as a line of JSON; what JSON has no form for, such as a date, as its text."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can hold it
        return json.dumps(row, default=str).encode() + b"\n"


@contextmanager
def new_file(output: Path) -> Iterator[RowWriter]:
    """Open a new file for rows; it appears at the end, unless an exception left the block.

    Of several that write one file at a time, the first to end makes it.

    Args:
        output: a path that `require_new` accepts.

    Raises:
        DataError: it exists or is made meanwhile, its name says no format, or it cannot be written.
    """
    require_new(output)
    try:
        with replacing(output, new=True) as partial:
            with ExitStack() as stack:
                stream: IO[bytes] | gzip.GzipFile = stack.enter_context(partial.open("wb"))
                if output.suffix == ".gz":
                    # Without name and time in its header, the same rows are the same bytes.
                    stream = stack.enter_context(gzip.GzipFile("", "wb", fileobj=stream, mtime=0))
                writer = RowWriter(stream)
                yield writer
            if output.suffix == ".parquet":
                _to_parquet(partial, writer.count)
    except DataError:
        raise  # of the source, which is read meanwhile: a missing file is an OSError too
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}; set output") from error


def require_new(output: Path) -> None:
    """Refuse an output that exists, has no folder, or has a name that says no format."""
    if not output.name.endswith(SUFFIXES):
        raise DataError(
            f"cannot tell what to write from the name {output}; "
            f"give output a name in {', '.join(SUFFIXES)}"
        )
    if output.exists():
        raise DataError(f"{output} exists and is not overwritten; give output another name")
    if not output.parent.is_dir():
        raise DataError(f"the folder {output.parent} does not exist; create it, or set output")


def _to_parquet(lines: Path, num_rows: int) -> None:
    """Put Parquet in place of JSON Lines, in two passes: columns, or their types, may come late."""
    import pyarrow
    import pyarrow.parquet

    table = lines.with_suffix(".table.partial")
    try:
        schema, num_batches = pyarrow.schema([]), math.ceil(num_rows / BATCH_ROWS)
        for rows in track(_batches(lines), "columns", num_batches):
            inferred = pyarrow.Table.from_pylist(rows, _columns(pyarrow, rows)).schema
            schema = pyarrow.unify_schemas([schema, inferred], promote_options="permissive")
        with pyarrow.parquet.ParquetWriter(table, schema) as writer:
            for rows in track(_batches(lines), "writing Parquet", num_batches):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        table.replace(lines)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"a column has values of several types, which Parquet cannot hold ({error}); "
            "give output a name in .jsonl"
        ) from error
    finally:
        table.unlink(missing_ok=True)


def _columns(pyarrow: Any, rows: Iterable[Mapping[str, object]]) -> Any:
    """The schema of some rows; their columns in order of first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pyarrow.schema(
        [(name, pyarrow.infer_type([row.get(name) for row in rows])) for name in names]
    )


def _batches(lines: Path) -> Iterator[list[dict[str, object]]]:
    with lines.open("rb") as stream:
        while rows := [json.loads(line) for line in islice(stream, BATCH_ROWS)]:
            yield rows
