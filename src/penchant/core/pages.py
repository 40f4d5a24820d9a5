"""What every page of Penchant looks like: colours of light and dark screens, headings, tables."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

STYLE_SHEET = Path(str(files(__package__).joinpath("page.css")))


@cache
def style() -> str:
    """The style sheet that the pages share; each adds its own to it."""
    return STYLE_SHEET.read_text(encoding="utf-8")
