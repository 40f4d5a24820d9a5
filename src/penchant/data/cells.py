"""What the cells of a row stand for: messages kept as JSON, numbers and votes, nulls of Arrow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress

from penchant.data.rows import margins
from penchant.data.rows.row import TEMPLATE_COLUMNS, Row, RowError

# A text that opens as messages do; one message alone counts only when it is a whole one.
MESSAGES = re.compile(r"\s*(\[\s*)?\{\s*['\"](role|content|from|value)['\"]\s*:")
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
# What an object may call its text, and what may stand beside it without changing what it says.
TEXTS = ("completion", "response", "text", "content", "answer", "output", "solution", "generation")
ABOUT_A_TEXT = ("model", "model_id", "policy", "token_len", "num_tokens", "id")


def typed(row: Row) -> Row:
    """The row with what its texts stand for.

    Messages kept as JSON text are messages, whatever file they come from: as text, a model would
    be trained to write JSON. A table holds only text, so its numbers and votes are read as well.

    Raises:
        RowError: a text opens as a list of messages, but is not JSON.
    """
    return {name: _value(name, text) for name, text in row.items()}


def _value(name: str, value: object) -> object:
    if isinstance(value, Mapping):
        return only_text(value)
    if not isinstance(value, str):
        return value
    if name in margins.NUMBER_FIELDS:
        return _number(value)
    if name == "votes":
        with suppress(ValueError):
            return json.loads(value)
    opening = MESSAGES.match(value)
    return _messages(name, value, listed=bool(opening[1])) if opening else value


def only_text(value: Mapping[str, object]) -> object:
    """The text of an object that holds a text and at most who wrote it; other objects stay.

    As judges keep answers: `{"answer": "..."}`.
    """
    texts = [name for name in TEXTS if isinstance(value.get(name), str)]
    alone = len(texts) == 1 and value.keys() <= {*texts, *ABOUT_A_TEXT}
    return value[texts[0]] if alone else value


def _number(text: str) -> float | str | None:
    """A number, None for a blank cell, or the text where it is neither."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def _messages(name: str, text: str, *, listed: bool) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not listed:
            return text
        raise RowError(
            "malformed JSON",
            f"'{name}' holds messages, but not as JSON: {error}; write json.dumps",
        ) from error
    turns = value if isinstance(value, list) else [value]
    whole = all(isinstance(turn, Mapping) and any(k <= set(turn) for k in MESSAGE_KEYS)
                for turn in turns)  # fmt: skip
    return value if whole else text


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
