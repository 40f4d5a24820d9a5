"""Commands in messages, as they can be typed where the message is read."""

from __future__ import annotations

import re
import shutil
from functools import cache

# The program at the beginning of a command, not its name in a sentence or a path.
COMMAND = re.compile(
    r"(?<![\w./\[-])(?<!-m )penchant (?=(?:train|check|sweep|compare|evaluate|advise|methods|data|"
    r"label|report|watch|demo|explain|config|recipes|completion|merge|chat|export|push)\b)"
)


def typeable(text: str) -> str:
    """A text whose commands run here: `penchant` may be installed, but not be on the PATH."""
    return text if _on_path() else COMMAND.sub("python -m penchant ", text)


@cache
def _on_path() -> bool:
    return shutil.which("penchant") is not None


def install(extra: str) -> str:
    """How to install what an extra names, from an index or in a clone."""
    return f"pip install 'penchant[{extra}]' (in a clone: pip install -e '.[{extra}]')"
