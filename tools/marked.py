"""Tables that stand between two marks of a page."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def stale(page: Path, marks: tuple[str, str], table: str) -> str:
    """The page as it ought to be; empty where it is so.

    Args:
        page: whose table it is.
        marks: the lines before and after the table.
        table: as it ought to be.

    Raises:
        ValueError: the page has no marks to write between.
    """
    start, end = marks
    text = page.read_text(encoding="utf-8")
    new, count = re.subn(f"{start}\n.*?{end}", lambda _: f"{start}\n{table}{end}", text, flags=re.S)
    if count != 1:
        raise ValueError(
            f"{page} has no place for its table; put the lines '{start}', '{end}' there"
        )
    return "" if new == text else new


def main(page: Path, new: str) -> int:
    """Rewrite a page, or with --check only say that it is stale; the exit status."""
    if new and "--check" in sys.argv[1:]:
        print(f"{page} is stale; run make docs")
        return 1
    if new:
        page.write_text(new, encoding="utf-8")
        print(f"wrote {page}")
    return 0
