"""Files that gzip, bzip2, xz or zstd has compressed, by how they begin."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from penchant.data.records import DataError


@contextmanager
def unpacked(path: Path, raw: IO[bytes], form: str) -> Iterator[Any]:
    """The content of a compressed file, with lines; one that was cut off ends in EOFError.

    Args:
        path: for the message.
        raw: the file, at its beginning.
        form: gzip, bzip2, xz or zstd.

    Raises:
        DataError: it is not of its format.
    """
    try:
        with FORMS[form](raw) as stream:
            yield stream
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path} is not a valid {form} file: {error}; fetch it again") from error


def _zstandard(raw: IO[bytes]) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"))


FORMS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _zstandard,
}
