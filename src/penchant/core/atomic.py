"""Files that are there whole or not at all, also after the power fails."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Seconds after which an unfinished file is that of a process which was killed.
ABANDONED = 3600.0


def write_atomically(path: Path, text: str, *, new: bool = False) -> None:
    """Create or replace a text file in one move; `new` is that of `replacing`."""
    with replacing(path, new=new) as partial:
        partial.write_text(text, encoding="utf-8")


def partial_of(path: Path) -> Path:
    """A name beside a file for what is to become it; each call gives another one."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A name to write a file by, which takes the place of `path` in one move after the block.

    Several processes may write one file: each has a name of its own, and the last to end is kept.

    Args:
        path: of the file.
        new: whether nothing is replaced, so that the first to end is kept.

    Raises:
        FileExistsError: `new`, and the file is there after the block.
    """
    partial = partial_of(path)
    try:
        yield partial
        flush_to_disk(partial)
        _remove_abandoned(path, partial.stat().st_mtime)
        if new and path.exists():
            told = "it was made meanwhile and is not overwritten"
            raise FileExistsError(errno.EEXIST, told, str(path))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_abandoned(path: Path, now: float) -> None:
    """Remove what killed processes left of the same file; the time is of the disk's own clock."""
    for other in path.parent.iterdir():
        if other.name.startswith(f".{path.name}.") and other.name.endswith(".partial"):
            with suppress(FileNotFoundError):  # another process removes it as well
                if now - other.stat().st_mtime > ABANDONED:
                    other.unlink()


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
