"""Turn one row, in any of the common preference layouts, into a `Pair`.

Everything here is a pure function of a row. A row that cannot be a pair raises `RowError`, which
names the field, the value and the fix; `read.py` counts those.
"""

from __future__ import annotations

from collections.abc import Mapping

from penchant.data.records import Pair, Text
from penchant.data.rows.margins import read_agreement, read_margin, read_side
from penchant.data.rows.messages import (
    ANSWERING,
    HUMAN_TURN,
    check_completion,
    check_prompt,
    quoted,
    read_text,
    with_template_columns,
)
from penchant.data.rows.row import Layout, Row, RowError, first_role, fit, is_given, kind, shown

PAIR_FIELDS = ("chosen", "rejected")
LABELLED_FIELDS = ("completion_a", "completion_b")
FIELDS = ("prompt", *PAIR_FIELDS, *LABELLED_FIELDS, "label")

TEXT = Layout("prompt, chosen, rejected (text)", ("prompt", *PAIR_FIELDS))
CHAT = Layout("prompt, chosen, rejected (chat)", ("prompt", *PAIR_FIELDS))
WHOLE_CHAT = Layout("chosen, rejected (chat)", PAIR_FIELDS)
TRANSCRIPT = Layout("chosen, rejected (Human/Assistant transcript)", PAIR_FIELDS)
LABELLED_TEXT = Layout(
    "prompt, completion_a, completion_b, label (text)", ("prompt", *LABELLED_FIELDS, "label")
)
LABELLED_CHAT = Layout(
    "prompt, completion_a, completion_b, label (chat)", ("prompt", *LABELLED_FIELDS, "label")
)
LAYOUTS = (TEXT, CHAT, WHOLE_CHAT, TRANSCRIPT, LABELLED_TEXT, LABELLED_CHAT)


def recognise(row: object) -> Layout | None:
    """Return the layout that a row's fields and their types fit, or None."""
    if not isinstance(row, Mapping):
        return None
    given = {field for field in FIELDS if is_given(row, field)}
    if given >= set(TEXT.fields):
        return _text_or_chat(row, PAIR_FIELDS, TEXT, CHAT)
    if given >= set(PAIR_FIELDS):
        kinds = {kind(row[field]) for field in PAIR_FIELDS}
        if kinds == {"messages"}:
            # Answers after a prompt of another name are another project's layout.
            behind = is_given(row, "conversations") or is_given(row, "messages")
            return None if behind and first_role(row["chosen"]) in ANSWERING else WHOLE_CHAT
        transcripts = kinds == {"text"} and all(HUMAN_TURN.search(str(row[f])) for f in PAIR_FIELDS)
        return TRANSCRIPT if transcripts else None
    if given >= set(LABELLED_TEXT.fields):
        return _text_or_chat(row, LABELLED_FIELDS, LABELLED_TEXT, LABELLED_CHAT)
    return None


def to_pair(row: object, layout: Layout | None, where: str) -> Pair | None:
    """Turn a row into a pair.

    Args:
        row: the fields by name; those that no layout knows are ignored.
        layout: the layout of the rows before, or None when no row has fitted one yet.
        where: the file and line, kept in the pair.

    Returns:
        The pair, or None when the row is labelled a tie.

    Raises:
        RowError: when the row is in no layout, in another one than `layout`, or its content
            cannot be trained on.
    """
    row, layout_of_row = fit(row, layout, recognise, _misfit)
    fields, label = PAIR_FIELDS, None
    if layout_of_row in (LABELLED_TEXT, LABELLED_CHAT):
        label = _label(row)
        if label == "tie":
            return None
        fields = LABELLED_FIELDS if label == "a" else ("completion_b", "completion_a")
    prompt, chosen, rejected = _texts(row, layout_of_row, fields)
    _check(prompt, chosen, rejected, fields)
    prompt = with_template_columns(prompt, row)
    return Pair(prompt, chosen, rejected, where, read_margin(row), read_agreement(row, label))


def prompt_of(row: Row, layout: Layout) -> Text:
    """The prompt of a row in one of `LAYOUTS`, whichever completion is preferred.

    Raises:
        RowError: when its parts are not what they should be.
    """
    labelled = layout in (LABELLED_TEXT, LABELLED_CHAT)
    return with_template_columns(
        _texts(row, layout, LABELLED_FIELDS if labelled else PAIR_FIELDS)[0], row
    )


def _text_or_chat(
    row: Row, completions: tuple[str, str], text: Layout, chat: Layout
) -> Layout | None:
    kinds = {kind(row[field]) for field in completions}
    prompt = kind(row["prompt"])
    if len(kinds) != 1 or None in kinds or prompt is None:
        return None
    if all(lists_texts(row[field]) for field in completions):
        return None
    return text if kinds == {"text"} and prompt == "text" else chat


def lists_texts(value: object) -> bool:
    """Whether a field holds several answers, not the messages of one."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], str)


def _misfit(row: Row, layout: Layout | None) -> RowError:
    """Say why a row fits no layout, measured against `layout` or else the nearest one."""
    from penchant.data.rows.pair_misfits import misfit

    if layout is None:
        labelled = any(is_given(row, field) for field in LABELLED_FIELDS)
        layout = LABELLED_TEXT if labelled else TEXT
    return misfit(row, layout, chat=layout is WHOLE_CHAT)


def _label(row: Row) -> str:
    side = read_side(row["label"])
    if side is None:
        raise RowError("unknown label", f"'label' must be a, b or tie, got {shown(row['label'])}")
    return side


def _texts(row: Row, layout: Layout, fields: tuple[str, str]) -> tuple[Text, ...]:
    """Read prompt, chosen and rejected; `fields` names the completions, chosen first."""
    if layout in (TEXT, LABELLED_TEXT):
        return tuple(read_text(row[field], field) for field in ("prompt", *fields))
    from penchant.data.rows.chats import read_messages, read_parts, read_transcript, split_prompt

    if layout in (WHOLE_CHAT, TRANSCRIPT):
        read = read_messages if layout is WHOLE_CHAT else read_transcript
        chosen, rejected = (read(row[field], field) for field in fields)
        return split_prompt(chosen, rejected)
    return read_parts(row["prompt"], {field: row[field] for field in fields}, split_prompt)


def _check(prompt: Text, chosen: Text, rejected: Text, fields: tuple[str, str]) -> None:
    """Refuse what cannot teach a preference; `fields` names chosen and rejected for the user."""
    check_prompt(prompt)
    check_completion(chosen, fields[0])
    check_completion(rejected, fields[1])
    if chosen == rejected:
        raise RowError("chosen equals rejected", f"both are {quoted(chosen)}")
