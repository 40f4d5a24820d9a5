"""The names of columns in the user's data, by the names used here."""

from __future__ import annotations

from collections.abc import Mapping

from penchant.data.rows.row import Row


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


def written(columns: Mapping[str, str]) -> str:
    """Names of columns as the command line takes them: `chosen=better,rejected=worse`."""
    return ",".join(f"{name}={own}" for name, own in columns.items())


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under the names used here; a column that had such a name gives way."""
    names = {own: name for name, own in columns.items() if own in row}
    if not names:
        return row
    taken = set(names.values())
    return {
        names.get(own, own): value for own, value in row.items() if own in names or own not in taken
    }
