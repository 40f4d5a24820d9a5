"""`penchant explain`: what a finding means, from the page that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path

from penchant.core.errors import ConfigError
from penchant.core.findings import IDS, nearest_ids

PAGE = Path(__file__).with_name("guards.md")


def explain(name: str) -> str:
    """The explanation of a finding.

    Raises:
        ConfigError: no finding has this id; the nearest are named.
    """
    if name not in IDS:
        raise ConfigError(f"unknown finding {name!r}; {nearest_ids(name)}")
    section = re.search(
        rf"^### {re.escape(name)}\n(.*?)(?=^##|\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    assert section, "every id has its heading"
    return f"{name}\n\n{section[1].strip()}"
