"""What is said of files that are cut off, or not UTF-8."""

from __future__ import annotations

import shlex
from pathlib import Path

from penchant.data.records import DataError, Refusal


def truncated(path: Path) -> DataError:
    """That a compressed file is not whole."""
    return DataError(f"{path} is a compressed file that was cut off; fetch it again")


def cut_off(name: str, line: int) -> Refusal:
    """The refusal of the line in which a compressed file ends too early."""
    return Refusal(
        f"{name}:{line}",
        "compressed file cut off",
        "the compressed file ends within this line; what follows is lost, so fetch it again",
    )


def recode(path: Path, encoding: str) -> str:
    """How to make UTF-8 of a file."""
    return f"save it as UTF-8: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW"
