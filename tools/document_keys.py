"""Write docs/reference/keys.md: every key of a run, by section, with its default and meaning.

With --check it only says whether the page is stale, and exits 1 if it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from penchant.cli.arguments import metavar
from penchant.config.sections import SECTIONS
from penchant.methods.online import OnlineOptions

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "keys.md"
HEAD = """# Every key

<!-- written by tools/document_keys.py -->

A key has one name in a YAML file (`learning_rate: 0.00001`), on the command line
(`--learning_rate 1e-5`) and in Python (`penchant.train(..., learning_rate=1e-5)`). The options of
each [method](../methods/index.md) are on its own page, those of all methods that sample at the end
of this one. `penchant config METHOD` writes all of them as a file.
"""


def page() -> str:
    """The page as the code has it."""
    parts = [HEAD]
    for section in SECTIONS:
        parts.append(f"## {section.__doc__}\n\n{_table(section.model_fields)}")
    parts.append(f"## Of methods that sample\n\n{_table(OnlineOptions.model_fields)}")
    return "\n".join(parts)


def _table(fields: Mapping[str, FieldInfo]) -> str:
    rows = ["| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        value = metavar(field).replace("|", ", ")
        default = "required" if field.is_required() else f"`{_spelled(field.default)}`"
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {value} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _spelled(default: object) -> str:
    """A default as YAML has it."""
    if default is None:
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" in arguments:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
