"""What the cells of a row stand for: messages kept as JSON, numbers and votes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress

from penchant.data.rows import margins
from penchant.data.rows.row import Row

# A text that opens as messages do; one message alone counts only when it is a whole one.
MESSAGES = re.compile(r"\s*(\[\s*)?\{\s*['\"](role|content|from|value)['\"]\s*:")
# What an object may call its text, and what may stand beside it without changing what it says.
TEXTS = ("completion", "response", "text", "content", "answer", "output", "solution", "generation",
         "body")  # fmt: skip
# Columns of texts: what others hold is as a reward function, say, expects it.
OF_TEXT = re.compile(
    r"chosen|rejected|prompt|question|response|completion|answer|output|candidate|generation",
    re.IGNORECASE,
)
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
        return only_text(value) if OF_TEXT.search(name) else value
    if not isinstance(value, str):
        return value
    if name in margins.NUMBER_FIELDS:
        return _number(value)
    if name == "votes":
        with suppress(ValueError):
            return json.loads(value)
    opening = MESSAGES.match(value)
    if not opening:
        return value
    from penchant.data.json_cells import messages

    return messages(name, value, listed=bool(opening[1]))


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
