"""Answers that users or judges rated where they were given, as rows that `data build` knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data.converting.exchange import NewRow
from penchant.data.names import own_name
from penchant.data.rows.row import Row, RowError, kind


def open_webui(row: Row) -> NewRow:
    """A thumb in Open WebUI: its value, and the chat as it was then."""
    data: Any = row["data"]
    chat: Any = row["snapshot"]
    while isinstance(chat.get("chat"), Mapping):
        chat = chat["chat"]
    listed = (chat.get("history") or {}).get("messages") or chat.get("messages")
    messages = listed.values() if isinstance(listed, Mapping) else listed or ()
    by_id = {one["id"]: one for one in messages}
    meta: Any = row.get("meta") or {}
    last = meta.get("message_id") or next(reversed(by_id), None)
    turns: list[NewRow] = []
    while last in by_id:
        one = by_id.pop(last)  # a message that follows itself ends the chat
        turns.insert(0, {"role": one["role"], "content": one["content"]})
        last = one.get("parentId")
    if not turns:
        raise RowError("missing field", "'snapshot' holds no message that was rated")
    return {"messages": turns, "label": data["rating"]}


def is_open_webui(row: Row) -> bool:
    """Whether a rating stands beside the snapshot of a chat."""
    data = row.get("data")
    rated = isinstance(data, Mapping) and data.get("rating") is not None
    return rated and isinstance(row.get("snapshot"), Mapping)


def traced(row: Row) -> NewRow:
    """An answer that was logged with one score, of a user or a judge (Langfuse, LangSmith)."""
    value = _score(row)
    prompt = next((row[name] for name in (*own_name(row, "prompt"), "messages") if name in row), "")
    answer: Any = row[next(iter(own_name(row, "completion")))]
    single = isinstance(answer, Mapping) and answer.get("role") == "assistant"
    # A thumb, unless other rows show that it is a rating.
    thumb = {"label": value} if value in (0, 1, -1) else {}
    completion = [dict(answer)] if single else answer
    return {"prompt": prompt, "completion": completion, "rating": value, **thumb}


def is_traced(row: Row) -> bool:
    """Whether an answer stands beside a single score that is an object, or the field of one."""
    answers = own_name(row, "completion")
    given = bool(answers) and kind(row[answers[0]]) is not None
    asks = bool(own_name(row, "prompt")) or kind(row.get("messages")) == "messages"
    return given and asks and _score(row) is not None


def _score(row: Row) -> float | None:
    """The only score in `scores`, `feedback` or `feedback_stats`; None where there is none."""
    for name in ("scores", "feedback"):
        value = row.get(name)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, Mapping):
            found = [
                value[key] for key in ("value", "score", "rating") if value.get(key) is not None
            ]
            if len(found) == 1 and isinstance(found[0], int | float):
                return float(found[0])
    return None
