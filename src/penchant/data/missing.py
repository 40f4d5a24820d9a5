"""What is said of a path where nothing is."""

from __future__ import annotations

import difflib
from pathlib import Path


def no_such_file(path: Path) -> str:
    """That there is nothing, and what has nearly its name."""
    message = f"no such file: {path}"
    if not path.parent.is_dir():
        return f"{message} (the folder {path.parent} does not exist either)"
    names = [entry.name for entry in path.parent.iterdir()]
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if nearest:
        message += f"; did you mean {path.parent / nearest[0]}?"
    return message
