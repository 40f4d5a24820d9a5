"""The lines and the bytes of a file of data, decompressed, and how its rows get their places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from penchant.data.records import Refusal

# A row with its place, or a place where no row could be read.
Item = tuple[str, object] | Refusal
# Called with how many bytes of a file have been read.
Watch = Callable[[int], None]

GZIP, PARQUET, UTF8_MARK = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
# How compressed files begin.
PACKED = {GZIP: "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MARK_BYTES = max(map(len, PACKED))
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def numbered(name: str, rows: Iterable[object]) -> Iterator[Item]:
    """Give every row its place, counted from 1."""
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row


def first_lines(path: Path) -> bytes:
    """The first two lines that are not blank, of a compressed file as far as it can be read."""
    lines: list[bytes] = []
    try:
        for line in read_lines(path):
            lines.append(line)
            if len(lines) == 1 and line.startswith((PARQUET, *UTF16_MARKS)):
                break
            if sum(bool(line.strip()) for line in lines) == 2:
                break
    except EOFError as error:
        if not lines:
            from penchant.data.broken_files import truncated

            raise truncated(path) from error
    return b"".join(lines).lstrip()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Any]]:
    """The file as it lies there, whose position tells how much is read, and its content."""
    with path.open("rb") as raw:
        head = raw.read(MARK_BYTES)
        raw.seek(0)
        form = next((form for mark, form in PACKED.items() if head.startswith(mark)), "")
        if not form and path.suffix.lower() != ".gz":
            yield raw, raw
            return
        from penchant.data.packed import unpacked

        with unpacked(path, raw, form or "gzip") as stream:
            yield raw, stream


def read_lines(path: Path, watch: Watch | None = None) -> Iterator[bytes]:
    """Yield lines, decompressed; a compressed file that was cut off ends in EOFError."""
    with _opened(path) as (raw, stream):
        for number, line in enumerate(stream):
            if watch:
                watch(raw.tell())
            yield line.removeprefix(UTF8_MARK) if not number else line


def unique_fields(fields: list[tuple[str, object]]) -> dict[str, object]:
    """The fields of a JSON object, for `object_pairs_hook`: of two with one name, one is lost.

    Raises:
        ValueError: two have one name.
    """
    row = dict(fields)
    if len(row) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two fields named '{twice}'")
    return row
