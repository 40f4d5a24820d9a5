"""The data's own names of columns, in place of those used here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.data.records import DataError
from penchant.data.rows.row import Row


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


class Names:
    """The data's own names of columns, and which of them no row has had so far.

    Args:
        columns: by the name used here.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns, self._absent = columns, set(columns.values())
        self._first: Row | None = None

    def rename(self, row: Row, whole: Row) -> Row:
        """As `renamed`."""
        self._first = row if self._first is None else self._first
        self._absent -= {own for name, own in self.columns.items() if own in row or name in row}
        self._absent = {own for own in self._absent if pick(whole, own) is None}
        return renamed(row, self.columns, whole)

    def require_found(self, part: str) -> None:
        """Refuse names that no row of a part has.

        Raises:
            DataError: it names them, and what the first row has.
        """
        if self._absent and self._first is not None:
            has = ", ".join(map(str, self._first)) or "no columns"
            raise DataError(
                f"columns names {', '.join(sorted(self._absent))}, which no row of {part} has "
                f"(it has: {has}); set columns"
            )
