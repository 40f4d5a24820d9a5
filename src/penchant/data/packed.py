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

from penchant.data.lines import PACKED
from penchant.data.records import DataError


@contextmanager
def unpacked(path: Path, raw: IO[bytes], head: bytes) -> Iterator[Any]:
    """The content of a compressed file, with lines; one that was cut off ends in EOFError.

    Args:
        path: for the message.
        raw: the file, at its beginning.
        head: its first bytes; what begins as none of the formats is taken for gzip.

    Raises:
        DataError: it is not of its format.
    """
    known = zip(PACKED, FORMS, strict=True)
    form, unpack = next((one for mark, one in known if head.startswith(mark)), FORMS[0])
    try:
        with unpack(raw) as stream:
            yield stream
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path} is not a valid {form} file: {error}; fetch it again") from error


def _zstandard(raw: IO[bytes]) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"))


# What each of `PACKED` is called, and what reads it.
FORMS: tuple[tuple[str, Callable[[IO[bytes]], Any]], ...] = (
    ("gzip", lambda raw: gzip.GzipFile(fileobj=raw)),
    ("bzip2", bz2.BZ2File),
    ("xz", lzma.LZMAFile),
    ("zstd", _zstandard),
)
