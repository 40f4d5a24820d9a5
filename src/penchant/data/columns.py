"""What is said on the command line by name: columns of the data, options of a chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penchant.data.rows.row import Row

WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_columns(text: str) -> dict[str, str]:
    """Read `chosen=better,rejected=worse`.

    Raises:
        ValueError: it is not of this form.
    """
    columns: dict[str, str] = {}
    for word in filter(str.strip, text.split(",")):
        name, _, own = (part.strip() for part in word.partition("="))
        if not (name and own):
            raise ValueError(f"must be NAME=VALUE,..., got {text!r}")
        columns[name] = own
    return columns


def parse_kwargs(value: Any) -> Any:
    """Read `enable_thinking=false,budget=512` or a JSON object; what is no text stays.

    Raises:
        ValueError: it is of neither form.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    return {name: _typed(word) for name, word in parse_columns(value).items()}


def _typed(word: str) -> Any:
    """What a word of the command line means: true, a number, or text."""
    if word.lower() in WORDS:  # Python's True too: as text, it would count as true whatever it says
        return WORDS[word.lower()]
    try:
        return json.loads(word)
    except ValueError:
        return word


def written(columns: Mapping[str, str]) -> str:
    """Names of columns as the command line takes them: `chosen=better,rejected=worse`."""
    return ",".join(f"{name}={own}" for name, own in columns.items())


def pick(row: Row, path: str) -> Any:
    """A column, or a field within one as `question.full_text`; None where it is absent.

    Of a list of objects it is the list of their fields.
    """
    return row[path] if path in row else _within(row, path.split("."))


def _within(value: object, names: Sequence[str]) -> Any:
    if not names:
        return value
    if isinstance(value, list | tuple):
        fields = [_within(one, names) for one in value]
        return None if None in fields or not fields else fields
    return _within(value.get(names[0]), names[1:]) if isinstance(value, Mapping) else None


def renamed(row: Row, columns: Mapping[str, str], whole: Row | None = None) -> Row:
    """The row under the names used here; a column that had such a name gives way.

    Args:
        row: any.
        columns: the row's own name of a column, or the path of a field within one, by the name
            used here.
        whole: the row as it was read, in which paths lead; default: the row.
    """
    names = {own: name for name, own in columns.items() if own in row}
    within = {name: pick(whole or row, own) for name, own in columns.items() if own not in row}
    within = {name: value for name, value in within.items() if value is not None}
    if not (names or within):
        return row
    taken = {*names.values(), *within}
    kept = {
        names.get(own, own): value for own, value in row.items() if own in names or own not in taken
    }
    return {**kept, **within}
