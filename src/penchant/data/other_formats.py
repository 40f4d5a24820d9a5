"""Files that are no text, and none of the formats that are read: what makes a readable one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NoReturn

from penchant.data.broken_files import recode
from penchant.data.records import DataError

PICKLED = "a pickle, which may run any code as it is read; write its rows as JSON Lines"
# How a file begins that holds rows, but not in a format that is read here, and what makes one.
OTHERS = {
    b"SQLite format 3\0": "an SQLite database; write a table as JSON: sqlite3 -json {path} "
    "'SELECT * FROM TABLE' > NEW.json",
    b"PK\x03\x04": "a zip archive, or a workbook of Excel; unpack it (unzip {path} -d FOLDER), or "
    "save the sheet as CSV UTF-8",
    b"\x80\x04": PICKLED,
    b"\x80\x05": PICKLED,
}


def refuse(path: Path, head: bytes) -> NoReturn:
    """Say what a file is and what converts it.

    Raises:
        DataError: always.
    """
    for mark, said in OTHERS.items():
        if head.startswith(mark):
            raise DataError(f"{path} is {said.format(path=shlex.quote(str(path)))}")
    raise DataError(f"{path} is UTF-16 or not text at all; {recode(path, 'UTF-16')}")
