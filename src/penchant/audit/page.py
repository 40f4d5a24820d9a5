"""The report as one HTML page without script: records are untrusted text, and are escaped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from penchant.audit.finding import Finding
from penchant.audit.plots import as_svg
from penchant.audit.report import Report
from penchant.core.atomic import write_atomically
from penchant.core.commands import typeable
from penchant.core.pages import style
from penchant.data.opening import Sources, path_names
from penchant.data.records import DataError, Refusal, counted

NUM_PLACES, NUM_SHOWN = 20, 2
SHOWN_CHARACTERS = 300  # of each column


def write_page(report: Report, sources: Sources, path: Path) -> None:
    """Write the page; rows to show are read from the sources again.

    Raises:
        DataError: the file cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(
        files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    text = template.render(
        report=report,
        figures=[Markup(as_svg(plot)) for plot in report.plots],
        examples=_examples(report, sources),
        places=lambda finding: places(report, finding, NUM_PLACES),
        shown=shown,
        style=Markup(style()),
        ready=clean_command(report, sources),
    )
    try:
        write_atomically(path, text.encode("utf-8", "replace").decode())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; set html") from error


def clean_command(report: Report, sources: Sources) -> str:
    """The command that drops the rows of every error and warning; empty where there are none.

    Data that are objects have no name: there is no command for them.
    """
    names = path_names(sources.data)
    drop = [one.id for one in report.findings if one.droppable and one.severity != "note"]
    if not names or not drop:
        return ""
    first = Path(names[0])
    kept = first.with_name(f"{first.name.partition('.')[0] or 'data'}.clean.jsonl")
    output = shlex.quote(str(kept))
    return typeable(
        f"penchant data clean {sources.argument} --drop {','.join(drop)} --output {output}"
    )


def places(report: Report, finding: Finding, limit: int) -> str:
    """The first places of a finding's rows, and how many more there are."""
    text = ", ".join(report.places.at(finding.rows[:limit]))
    more = finding.rows.size - limit
    return f"{text} and {more:,} more" if more > 0 else text


def shown(value: Any) -> str:
    """A number of the evidence, for a person."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _examples(report: Report, sources: Sources) -> Mapping[str, list[tuple[str, str]]]:
    """The first rows of each finding, as JSON, cut; nothing is read beyond the last of them."""
    wanted: dict[int, list[str]] = {}
    for finding in report.findings:
        if finding.id == "personal-data":
            continue  # a report is passed on
        for row in finding.rows[:NUM_SHOWN]:
            wanted.setdefault(int(row), []).append(finding.id)
    examples: dict[str, list[tuple[str, str]]] = {}
    last = max(wanted, default=-1)
    for number, item in enumerate(sources.items("examples of")):
        if number > last:
            break
        for name in wanted.get(number, ()):
            where, text = (
                (item.where, str(item)) if isinstance(item, Refusal) else (item[0], _cut(item[1]))
            )
            examples.setdefault(name, []).append((where, text))
    return examples


def _cut(row: object) -> str:
    """A row, a column a line; of a chat, who says what."""
    if not isinstance(row, Mapping):
        return _shortened(json.dumps(row, ensure_ascii=False, default=str))
    return "\n".join(f"{name}: {_shortened(_column(value))}" for name, value in row.items())


def _column(value: object) -> str:
    """A column as a person reads it; what would not be seen so, as JSON."""
    if isinstance(value, str) and value.strip():
        return value
    turns = value if isinstance(value, list) else []
    if not turns or not all(_is_plain(turn) for turn in turns):
        return json.dumps(value, ensure_ascii=False, default=str)
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "".join(f"\n  {turn['role']}: {turn['content']}" for turn in turns)


def _is_plain(turn: object) -> bool:
    """Whether a message is a role and a text, and nothing else."""
    if not isinstance(turn, Mapping) or turn.keys() != {"role", "content"}:
        return False
    return all(isinstance(part, str) and part.strip() for part in turn.values())


def _shortened(text: str) -> str:
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]} … ({counted(more, 'character')} more)"
