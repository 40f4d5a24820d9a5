"""Why a row is no pair."""

from __future__ import annotations

from penchant.data.rows.messages import HUMAN_TURN
from penchant.data.rows.refusing import lacks, neither_text_nor_messages
from penchant.data.rows.row import Layout, Row, RowError, is_given, kind, shown

COMPLETIONS = ("chosen", "rejected")


def misfit(row: Row, layout: Layout, *, chat: bool) -> RowError:
    """Say why a row does not fit a layout.

    Args:
        row: that fits none.
        layout: that it is measured against.
        chat: whether that layout has whole chats.
    """
    missing = [field for field in layout.fields if not is_given(row, field)]
    if missing == ["prompt"] and all(kind(row.get(field)) == "text" for field in COMPLETIONS):
        return RowError(
            "missing field",
            "'prompt' is absent, and chosen and rejected are not transcripts with '\\n\\nHuman:' "
            "and '\\n\\nAssistant:' turns; add a 'prompt' field, or give both as lists of messages",
        )
    return lacks(layout, row, missing[:1]) if missing else _wrong_type(row, layout, chat)


def _wrong_type(row: Row, layout: Layout, chat: bool) -> RowError:
    texts = [field for field in layout.fields if field != "label"]
    for field in texts:
        if kind(row[field]) is None:
            return neither_text_nor_messages(field, row[field])
    completions = texts[-2:]
    if len({kind(row[field]) for field in completions}) > 1:
        types = " and ".join(f"'{f}' is a {type(row[f]).__name__}" for f in completions)
        return RowError("wrong type", f"{types}; both must be strings, or both lists of messages")
    if chat:
        got = shown(row["chosen"])
        detail = f"'chosen' must be a list of messages, like the rows before, got {got}"
        return RowError("wrong type", detail)
    field = next(f for f in texts if not HUMAN_TURN.search(str(row[f])))
    return RowError(
        "not a transcript",
        f"'{field}' has no '\\n\\nHuman:' turn, unlike the rows before it: {shown(row[field])}",
    )
