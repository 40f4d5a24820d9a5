"""Why a row is refused, where several readers say the same."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.data.rows.row import Layout, Row, RowError, shown


def lacks(layout: Layout, row: Row, names: Sequence[str]) -> RowError:
    """Say that a row lacks a field of the layout, which may go by any of `names`."""
    state = "null" if any(name in row for name in names) else "absent"
    aliases = f", under this name or as {' or '.join(names[1:])}" if names[1:] else ""
    has = ", ".join(map(str, row)) or "no fields"
    return RowError(
        "missing field",
        f"'{names[0]}' is {state}; the layout '{layout.name}' needs it{aliases} "
        f"(the row has: {has})",
    )


def neither_text_nor_messages(field: str, value: object) -> RowError:
    """Say that a field has the wrong type."""
    wanted = f"'{field}' must be a string or a list of messages"
    return RowError("wrong type", f"{wanted}, got {shown(value)}")
