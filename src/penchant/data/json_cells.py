"""Cells that hold messages as JSON, and cells that Arrow has filled with nulls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from penchant.data.rows.row import TEMPLATE_COLUMNS, Row, RowError

# Characters of a text that is read as Python's own writing, which takes a hundred times its memory.
LONGEST_LITERAL = 1_000_000
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def messages(name: str, text: str, *, listed: bool) -> object:
    """The messages that a text holds as JSON; the text where it holds none.

    Args:
        name: of the column.
        text: that opens as messages do.
        listed: it opens as a list of them.

    Raises:
        RowError: it opens as a list of messages, but is not JSON.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not listed:
            return text
        value = _literal(text) if len(text) <= LONGEST_LITERAL else None
        if value is None:
            raise RowError(
                "malformed JSON",
                f"'{name}' holds messages, but not as JSON: {error}; write json.dumps",
            ) from error
    turns = value if isinstance(value, list) else [value]
    whole = all(isinstance(turn, Mapping) and any(k <= set(turn) for k in MESSAGE_KEYS)
                for turn in turns)  # fmt: skip
    return value if whole else text


def _literal(text: str) -> object:
    """The list that a text is in Python's own writing, as pandas puts it into CSV; else None."""
    import ast

    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text.strip())
    return None


def unfilled(row: Row) -> Row:
    """A row of a table without the nulls that fill what its tools and messages do not have.

    Arrow gives every object of a column the fields of all of them: a tool would have the
    parameters of the others.
    """
    return {name: _unfilled(value) if _is_filled(name, value) else value
            for name, value in row.items()}  # fmt: skip


def _is_filled(name: str, value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    message = isinstance(first, dict) and ("role" in first or "from" in first)
    return message or (name in TEMPLATE_COLUMNS and not isinstance(value, str))


def _unfilled(value: object) -> object:
    if isinstance(value, dict):
        return {name: _unfilled(one) for name, one in value.items() if one is not None}
    return list(map(_unfilled, value)) if isinstance(value, list) else value
