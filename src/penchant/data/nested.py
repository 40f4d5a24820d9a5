"""Rows that stand within other rows: an object, or the JSON of one, in a single column.

As tools that log, trace or annotate write them: `data` or `payload` with a whole row in it;
`inputs` and `outputs`, of which one asks and the other answers; a text that is a row as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from penchant.data.names import AMBIGUOUS, NAMES, plain_name, sides
from penchant.data.rows.row import Row

# Columns that may hold a row, by what their fields are expected to be.
WHOLE = (
    *("data", "row", "record", "payload", "json", "jsonl", "example", "sample", "item", "body"),
    *("fields", "attributes", "entry", "raw", "line", "text", "content", "value", "_source"),
)
ASKING = {"inputs", "input"}
ANSWERING = {
    *("outputs", "output", "expected", "expected_output", "expectedOutput"),
    *("reference_outputs", "reference"),
}
WRAPPERS = {*WHOLE, *ASKING, *ANSWERING}
# Exports that keep their answers beside the object, and rows of the hub's viewer.
BESIDE = {"annotations", "responses", "preferred_output", "predictions"}
VIEWER = "row_idx"
PROMPTS = {*NAMES["prompt"], *NAMES["messages"]} - AMBIGUOUS
ANSWERS = {
    name
    for kind in ("chosen", "rejected", "completion", "completions", "messages")
    for name in NAMES[kind]
} - {*NAMES["label"]}


def unwrapped(row: Row) -> Row:
    """The row with the fields of what it wraps in place of that; the row itself if it wraps none.

    Its other columns stand beside them. Where both have one name for different things, or where
    prompts or answers stand on both levels, nothing is taken apart: a reader then refuses the row.

    Args:
        row: any.
    """
    while True:
        opened = _opened(row)
        if opened is row:
            return row
        row = opened


def _opened(row: Row) -> Row:
    """One level of `unwrapped`."""
    inner = row.get("row")
    if isinstance(inner, Mapping) and VIEWER in row:
        return inner
    objects = {name: one for name in row if name in WRAPPERS and (one := _object(row[name]))}
    beside = {name: value for name, value in row.items() if name not in objects}
    objects = {name: one for name, one in objects.items() if _wraps(name, one, beside)}
    if ASKING.isdisjoint(objects) or ANSWERING.isdisjoint(objects):
        # JSON alone in such a column is what was asked or answered, unless it holds both answers.
        objects = {
            name: one
            for name, one in objects.items()
            if name in WHOLE or not isinstance(row[name], str) or _is_pair(one)
        }
    if not objects:
        return row
    fields: dict[str, object] = {k: v for k, v in row.items() if k not in objects}
    for name, one in objects.items():
        for key, value in _fields(name, one).items():
            if key in fields and fields[key] != value:
                if plain_name(key) in PROMPTS | ANSWERS | {*NAMES["label"]}:
                    return row
                key = f"{name}.{key}"
            fields[key] = value
    return fields


def _object(value: object) -> Mapping[str, object] | None:
    """The object that a cell holds, or that its text is as JSON; not a message."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    message = isinstance(value, Mapping) and {*value} >= {"role", "content"}
    return value if isinstance(value, Mapping) and not message else None


def _wraps(name: str, inner: Mapping[str, object], beside: Row) -> bool:
    """Whether an object is a row, or its part that asks or answers, and not a cell of this one."""
    if not BESIDE.isdisjoint(beside):
        return False
    own, others = ({plain_name(key) for key in one} for one in (inner, beside))
    asks, answers = own & PROMPTS, own & ANSWERS or sides(inner)
    if name in ASKING:
        return bool(asks or answers) and not others & PROMPTS
    if name in ANSWERING:
        return bool(answers) and not others & ANSWERS and sides(beside) is None
    return bool(answers or asks) and not others & (PROMPTS | ANSWERS) and sides(beside) is None


def _is_pair(inner: Mapping[str, object]) -> bool:
    return {*inner} >= {"chosen", "rejected"} or sides(inner) is not None


def _fields(name: str, inner: Mapping[str, object]) -> Mapping[str, object]:
    """The fields of an object; the messages of what asks are the prompt."""
    if name in ASKING and "messages" in inner and "prompt" not in inner:
        return {"prompt" if key == "messages" else key: value for key, value in inner.items()}
    return inner
