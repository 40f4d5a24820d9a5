"""Turn one row that judges a single completion into a `Label`.

The counterpart of `pairs.py`: pure functions of a row, which raise `RowError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from penchant.data.records import Label, Messages, Pair, Text
from penchant.data.rows import pairs as formats
from penchant.data.rows.chats import read_messages, read_parts
from penchant.data.rows.messages import (
    check_completion,
    check_prompt,
    read_text,
    with_template_columns,
)
from penchant.data.rows.refusing import lacks, neither_text_nor_messages
from penchant.data.rows.row import Kind, Layout, Row, RowError, fit, is_given, kind, shown

# The names that a field may go by, the usual one first.
ALIASES = {
    "completion": ("completion", "response"),
    "label": ("label", "desirable", "thumbs_up"),
}
FIELDS = ("prompt", "messages", *ALIASES["completion"], *ALIASES["label"])

TEXT = Layout("prompt, completion, label (text)", ("prompt", "completion", "label"))
CHAT = Layout("prompt, completion, label (chat)", ("prompt", "completion", "label"))
WHOLE_CHAT = Layout("messages, label (chat)", ("messages", "label"))
LAYOUTS = (TEXT, CHAT, WHOLE_CHAT)

# Each way to say that a completion is desirable, and that it is not.
SPELLINGS = (
    ("true", "false"),
    ("1", "0"),
    ("+1", "-1"),
    ("good", "bad"),
    ("desirable", "undesirable"),
    ("thumbs up", "thumbs down"),
    ("up", "down"),
    ("positive", "negative"),
    ("yes", "no"),
    ("👍", "👎"),
    ("preferred", "dispreferred"),
    ("chosen", "rejected"),
    ("accepted", "rejected"),
    ("accept", "reject"),
    ("like", "dislike"),
    ("correct", "incorrect"),
    ("safe", "unsafe"),
)
VERDICTS = {word: word == words[0] for words in SPELLINGS for word in words}


def recognise_label(row: object) -> Layout | None:
    """Return the layout of a judged completion that a row's fields and types fit, or None."""
    if not isinstance(row, Mapping) or _name(row, "label") is None:
        return None
    completion = _name(row, "completion")
    if completion and is_given(row, "prompt"):
        kinds = {kind(row["prompt"]), kind(row[completion])}
        if None in kinds:
            return None
        return TEXT if kinds == {"text"} else CHAT
    return WHOLE_CHAT if kind(row.get("messages")) == "messages" else None


def to_label(row: object, layout: Layout | None, where: str) -> Label:
    """Turn a row into a label.

    Args:
        row: the fields by name; those that no layout knows are ignored.
        layout: the layout of the rows before, or None when no row has fitted one yet.
        where: the file and line, kept in the label.

    Returns:
        The judged completion.

    Raises:
        RowError: when the row is in no layout, in another one than `layout`, its label is none
            of the accepted ones, or its content cannot be trained on.
    """
    row, layout_of_row = fit(row, layout, recognise_label, _misfit)
    desirable = _desirable(row)
    field = "messages" if layout_of_row is WHOLE_CHAT else _name(row, "completion") or ""
    prompt, completion = _texts(row, layout_of_row, field)
    check_prompt(prompt)
    check_completion(completion, field)
    return Label(with_template_columns(prompt, row), completion, desirable, where)


def prompt_of(row: Row, layout: Layout) -> Text:
    """The prompt of a row in one of `LAYOUTS`, whatever its label says.

    Raises:
        RowError: when its parts are not what they should be.
    """
    field = "messages" if layout is WHOLE_CHAT else _name(row, "completion") or ""
    return with_template_columns(_texts(row, layout, field)[0], row)


def split_last_turn(chat: Messages) -> tuple[Messages, Messages]:
    """Split a whole chat into what precedes its last message, the assistant's, and that message.

    Raises:
        RowError: when the chat does not end with the assistant, or holds nothing else.
    """
    if chat[-1]["role"] != "assistant":
        raise RowError(
            "completion is not the assistant's",
            f"the chat ends with role '{chat[-1]['role']}' ({shown(chat[-1]['content'])}); "
            "it must end with the assistant message that is labelled",
        )
    if len(chat) == 1:
        raise RowError("empty prompt", f"nothing precedes the answer {shown(list(chat))}")
    return chat[:-1], chat[-1:]


def _name(row: Row, field: str) -> str | None:
    """The name by which a row gives a field, or None when it does not."""
    return next((name for name in ALIASES[field] if is_given(row, name)), None)


def _texts(row: Row, layout: Layout, field: str) -> tuple[Text, ...]:
    """Read prompt and completion; `field` holds the completion."""
    if layout is WHOLE_CHAT:
        return split_last_turn(read_messages(row[field], field))
    if layout is TEXT:
        return tuple(read_text(row[name], name) for name in ("prompt", field))
    return read_parts(row["prompt"], {field: row[field]}, split_last_turn)


def _desirable(row: Row) -> bool:
    field = _name(row, "label") or ""
    value = row[field]
    # true, 1 and 1.0 are read as they are spelled; CSV has them so.
    word = str(value) if isinstance(value, str | int | float) else ""
    word = re.sub(r"^thumbs?[ _-]?(?=up|down)", "thumbs ", word.strip().lower().removesuffix(".0"))
    if word not in VERDICTS:
        accepted = ", ".join("/".join(words) for words in SPELLINGS)
        raise RowError("unknown label", f"'{field}' must be one of {accepted}, got {shown(value)}")
    return VERDICTS[word]


def _misfit(row: Row, layout: Layout | None) -> RowError:
    """Say why a row fits no layout, measured against `layout` or else the nearest one."""
    if layout is None:
        whole = is_given(row, "messages") and _name(row, "completion") is None
        layout = WHOLE_CHAT if whole else TEXT
    names = {field: ALIASES.get(field, (field,)) for field in layout.fields}
    for choice in names.values():
        if not any(is_given(row, name) for name in choice):
            return lacks(layout, row, choice)
    if layout is WHOLE_CHAT:
        got = shown(row["messages"])
        return RowError("wrong type", f"'messages' must be a list of messages, got {got}")
    texts = ("prompt", _name(row, "completion") or "")
    field = next(field for field in texts if kind(row[field]) is None)
    return neither_text_nor_messages(field, row[field])


def _recognise_either(row: object) -> Layout | None:
    return recognise_label(row) or formats.recognise(row)


def _to_either(row: object, layout: Layout | None, where: str) -> Pair | Label | None:
    if (layout or _recognise_either(row)) in formats.LAYOUTS:
        return formats.to_pair(row, layout, where)
    return to_label(row, layout, where)


LABELS: Kind[Pair | Label] = Kind(
    "labelled completion",
    LAYOUTS,
    recognise_label,
    to_label,
    formats.recognise,
    "holds pairs (layout: {layout}), not labels of single completions; set unpair to read each "
    "pair as two labels, or write them to a file: penchant data convert {source} --to labels "
    "--output labels.jsonl",
)
EITHER: Kind[Pair | Label] = Kind(
    "labelled completion or preference pair",
    LAYOUTS + formats.LAYOUTS,
    _recognise_either,
    _to_either,
)
