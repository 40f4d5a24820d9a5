"""Commands in messages, as they can be typed where the message is read."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

# The program at the beginning of a command, not its name in a sentence or a path.
COMMAND = re.compile(
    r"(?<![\w./\[-])(?<!-m )penchant (?=(?:train|check|sweep|compare|evaluate|advise|methods|data|"
    r"label|report|watch|demo|explain|config|recipes|completion|merge|chat|export|push)\b)"
)


def typeable(text: str) -> str:
    """A text whose commands run here: `penchant` may be installed, but not be on the PATH."""
    return text if _on_path() else COMMAND.sub(lambda _: f"{_program()} ", text)


def _program() -> str:
    """The program as it was typed, such as .venv/bin/penchant; else as a module of Python."""
    typed = Path(sys.argv[0])
    if typed.name == "penchant" and typed.is_file() and len(typed.parts) > 1:
        return shlex.quote(str(typed))
    return "python -m penchant"


@cache
def _on_path() -> bool:
    return shutil.which("penchant") is not None


def install(extra: str) -> str:
    """How to install what an extra names, from an index or in a clone."""
    return f"pip install 'penchant[{extra}]' (in a clone: pip install -e '.[{extra}]')"
