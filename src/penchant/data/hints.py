"""What to run on rows that training cannot read: `penchant data build` or `data convert`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from penchant.data.building import FORMS, named
from penchant.data.building.logs import THUMBS
from penchant.data.building.rules import Rules
from penchant.data.converting import projects as layouts
from penchant.data.opening import as_argument, open_source
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Row, RowError

NUM_LOOKED_AT = 20


def hint(source: object, split: str) -> str | None:
    """Say what layout the first rows are in, where it is not one that training reads.

    Args:
        source, split: as for `open_source`; no row of it could be used.

    Returns:
        The layout and the command that makes training data of it, or None where it is unknown.
    """
    # Opened anew, with every column: a reader of pairs takes no more than pairs have.
    for row in islice(_rows(source, split), NUM_LOOKED_AT):
        if found := _foreign(row, source) or _raw(row, source):
            return found
    return None


def _rows(source: object, split: str) -> Iterator[Row]:
    _, items = open_source(source, split, prompts=True)
    for item in items:
        if isinstance(item, tuple) and isinstance(item[1], Mapping):
            yield item[1]


def _foreign(row: Row, source: object) -> str | None:
    matching = layouts.matching(row)
    found = [one for one in matching if one.project != "trl"]
    if not found:
        return None
    projects = list(dict.fromkeys(one.project for one in found))
    command = f"penchant data convert {as_argument(source)} --to trl --output {found[0].kind}.jsonl"
    if len(matching) > 1:
        command += f" --from {' or --from '.join(projects)}"
    names = " or ".join(one.name for one in found)
    return f"it is in the layout {names}, which training does not read; convert it:\n  {command}"


def _raw(row: Row, source: object) -> str | None:
    if formats.recognise(row) or labels.recognise_label(row):
        return None
    rules = Rules()
    try:
        own = named(row, rules)
    except RowError:  # what is wrong with the row, reading it has said
        return None
    found = [form for form in FORMS.values() if form.matches(own, rules)]
    if not found:
        return None
    kind = "labels" if found == [THUMBS] else "pairs"
    command = f"penchant data build {as_argument(source)} --output {kind}.jsonl"
    if len(found) > 1:
        command += f" --form {' or --form '.join(form.name for form in found)}"
    names = " or ".join(f"{form.name} ({form.columns})" for form in found)
    return f"it holds judgements, not {kind} yet: {names}; build them:\n  {command}"
