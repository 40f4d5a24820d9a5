"""Turn one row, in any of the common preference layouts, into a `Pair`.

Everything here is a pure function of a row. A row that cannot be a pair raises `RowError`, which
names the field, the value and the fix; `read.py` counts those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from penchant.data.records import Message, Messages, Pair, Text, is_chat

Row = Mapping[str, object]

ROLES = ("system", "user", "assistant", "tool", "developer")
PAIR_FIELDS = ("chosen", "rejected")
LABELLED_FIELDS = ("completion_a", "completion_b")
FIELDS = ("prompt", *PAIR_FIELDS, *LABELLED_FIELDS, "label")
HUMAN_TURN = re.compile(r"(?:\A|\n\n)Human:")
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Layout:
    """A recognised arrangement of fields.

    Args:
        name: how messages and reports call it.
        fields: the fields that every row has; others are ignored.
    """

    name: str
    fields: tuple[str, ...]


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


class RowError(ValueError):
    """A row that cannot be a pair: a short stable reason, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def recognise(row: object) -> Layout | None:
    """Return the layout that a row's fields and their types fit, or None.

    A null counts as absent, since tables fill the fields a row lacks with nulls.
    """
    if not isinstance(row, Mapping):
        return None
    given = {field for field in FIELDS if row.get(field) is not None}
    if given >= set(TEXT.fields):
        return _text_or_chat(row, PAIR_FIELDS, TEXT, CHAT)
    if given >= set(PAIR_FIELDS):
        kinds = {_kind(row[field]) for field in PAIR_FIELDS}
        if kinds == {"messages"}:
            return WHOLE_CHAT
        transcripts = kinds == {"text"} and all(HUMAN_TURN.search(str(row[f])) for f in PAIR_FIELDS)
        return TRANSCRIPT if transcripts else None
    if given >= set(LABELLED_TEXT.fields):
        return _text_or_chat(row, LABELLED_FIELDS, LABELLED_TEXT, LABELLED_CHAT)
    return None


def to_pair(row: object, layout: Layout | None, where: str) -> Pair | None:
    """Turn a row into a pair.

    Args:
        row: the fields by name; fields that no layout uses are ignored.
        layout: the layout of the rows before, or None when no row has fitted one yet.
        where: the file and line, kept in the pair.

    Returns:
        The pair, or None when the row is labelled a tie.

    Raises:
        RowError: when the row is in no layout, in another one than `layout`, or its content
            cannot be trained on.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"a row must be an object with fields, got {_shown(row)}")
    found = recognise(row)
    if found is None:
        raise _misfit(row, layout)
    if layout is not None and found != layout:
        raise RowError(
            "mixed formats",
            f"the row is in the layout '{found.name}', the rows before it in '{layout.name}'; "
            "keep one layout in a file",
        )
    if found in (LABELLED_TEXT, LABELLED_CHAT):
        return _from_label(row, where)
    if found is WHOLE_CHAT:
        chats = (_messages(row["chosen"], "chosen"), _messages(row["rejected"], "rejected"))
        return _checked(*split_prompt(*chats), where, PAIR_FIELDS)
    if found is TRANSCRIPT:
        chats = (_transcript(row["chosen"], "chosen"), _transcript(row["rejected"], "rejected"))
        return _checked(*split_prompt(*chats), where, PAIR_FIELDS)
    return _from_parts(row, PAIR_FIELDS, where)


def split_prompt(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Split two whole chats into their shared prompt and what follows it.

    Args:
        chosen: the preferred chat.
        rejected: the other chat.

    Returns:
        The longest shared prefix that leaves each chat its last message, and both remainders.

    Raises:
        RowError: when the chats are equal or share nothing, or one has nothing after the prompt.
    """
    if chosen == rejected:
        raise RowError("chosen equals rejected", f"both are {_shown(list(chosen))}")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared and chosen[0] == rejected[0]:
        raise RowError(
            "empty completion", f"a chat ends with its first message, {_shown(chosen[0])}"
        )
    if not shared:
        raise RowError(
            "no shared prompt",
            f"chosen starts with {_shown(chosen[0]['content'])}, rejected with "
            f"{_shown(rejected[0]['content'])}; both must start with the messages of one prompt",
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _text_or_chat(
    row: Row, completions: tuple[str, str], text: Layout, chat: Layout
) -> Layout | None:
    kinds = {_kind(row[field]) for field in completions}
    prompt = _kind(row["prompt"])
    if len(kinds) != 1 or None in kinds or prompt is None:
        return None
    return text if kinds == {"text"} and prompt == "text" else chat


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    return "messages" if isinstance(value, list | tuple) else None


def _misfit(row: Row, layout: Layout | None) -> RowError:
    """Say why a row fits no layout, measured against `layout` or else the nearest one."""
    if layout is None:
        labelled = any(row.get(field) is not None for field in LABELLED_FIELDS)
        layout = LABELLED_TEXT if labelled else TEXT
    missing = [field for field in layout.fields if row.get(field) is None]
    return _missing(row, layout, missing) if missing else _wrong_type(row, layout)


def _missing(row: Row, layout: Layout, missing: list[str]) -> RowError:
    if missing == ["prompt"] and all(_kind(row.get(field)) == "text" for field in PAIR_FIELDS):
        detail = (
            "'prompt' is absent, and chosen and rejected are not transcripts with '\\n\\nHuman:' "
            "and '\\n\\nAssistant:' turns; add a 'prompt' field, or give both as lists of messages"
        )
    else:
        state = "null" if missing[0] in row else "absent"
        has = ", ".join(map(str, row)) or "no fields"
        needs = f"the layout '{layout.name}' needs it"
        detail = f"'{missing[0]}' is {state}; {needs} (the row has: {has})"
    return RowError("missing field", detail)


def _wrong_type(row: Row, layout: Layout) -> RowError:
    texts = [field for field in layout.fields if field != "label"]
    for field in texts:
        if _kind(row[field]) is None:
            return RowError("wrong type", _needs_text_or_messages(field, row[field]))
    completions = texts[-2:]
    if len({_kind(row[field]) for field in completions}) > 1:
        types = " and ".join(f"'{f}' is a {type(row[f]).__name__}" for f in completions)
        return RowError("wrong type", f"{types}; both must be strings, or both lists of messages")
    if layout is WHOLE_CHAT:
        got = _shown(row["chosen"])
        detail = f"'chosen' must be a list of messages, like the rows before, got {got}"
        return RowError("wrong type", detail)
    field = next(f for f in texts if not HUMAN_TURN.search(str(row[f])))
    return RowError(
        "not a transcript",
        f"'{field}' has no '\\n\\nHuman:' turn, unlike the rows before it: {_shown(row[field])}",
    )


def _from_label(row: Row, where: str) -> Pair | None:
    label = row["label"]
    side = label.strip().lower() if isinstance(label, str) else None
    if side == "tie":
        return None
    if side not in ("a", "b"):
        raise RowError("unknown label", f"'label' must be a, b or tie, got {_shown(label)}")
    return _from_parts(row, LABELLED_FIELDS if side == "a" else LABELLED_FIELDS[::-1], where)


def _from_parts(row: Row, fields: tuple[str, str], where: str) -> Pair:
    """Build a pair from a prompt and two completions; `fields` names chosen, then rejected."""
    prompt, chosen, rejected = row["prompt"], row[fields[0]], row[fields[1]]
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        texts = [_text(row[field], field) for field in ("prompt", *fields)]
        return _checked(texts[0], texts[1], texts[2], where, fields)
    sides = (_completion(chosen, fields[0]), _completion(rejected, fields[1]))
    if isinstance(prompt, str):
        _text(prompt, "prompt")
        return _checked(*_with_text_prompt(prompt, *sides), where, fields)
    messages = _messages(prompt, "prompt")
    if all(side[: len(messages)] == messages for side in sides):
        sides = (sides[0][len(messages) :], sides[1][len(messages) :])
    return _checked(messages, *sides, where, fields)


def _with_text_prompt(
    prompt: str, chosen: Messages, rejected: Messages
) -> tuple[Messages, Messages, Messages]:
    """Place a plain prompt before chat completions, which may already repeat it."""
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return (Message(role="user", content=prompt),), chosen, rejected
    messages, chosen, rejected = split_prompt(chosen, rejected)
    asked = [one["content"].strip() for one in messages if one["role"] == "user"]
    if prompt.strip() not in asked:
        raise RowError(
            "prompt mismatch",
            f"'prompt' is {_shown(prompt)}, but no user message shared by both completions says "
            "that; drop the field to take the shared messages as the prompt",
        )
    return messages, chosen, rejected


def _completion(value: object, field: str) -> Messages:
    if isinstance(value, str):
        return (Message(role="assistant", content=_text(value, field)),)
    return _messages(value, field)


def _messages(value: object, field: str) -> Messages:
    if not isinstance(value, list | tuple):
        raise RowError("wrong type", _needs_text_or_messages(field, value))
    if not value:
        kind = "empty prompt" if field == "prompt" else "empty completion"
        raise RowError(kind, f"'{field}' is an empty list of messages")
    return tuple(_message(one, f"{field}[{number}]") for number, one in enumerate(value))


def _message(value: object, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError("wrong type", f"'{field}' must be a message, got {_shown(value)}")
    for key in ("role", "content"):
        if value.get(key) is None:
            has = ", ".join(map(str, value)) or "no fields"
            raise RowError("missing field", f"'{field}' has no '{key}' (it has: {has})")
    if value.get("tool_calls"):
        # The model would be trained to answer without the call that the answer rests on.
        raise RowError("tool calls", f"'{field}' has tool_calls, which only 'content' can hold")
    role = _text(value["role"], f"{field}.role")
    if role not in ROLES:
        raise RowError(
            "unknown role", f"'{field}.role' must be one of {', '.join(ROLES)}, got {_shown(role)}"
        )
    return Message(role=role, content=_text(value["content"], f"{field}.content"))


def _transcript(value: object, field: str) -> Messages:
    r"""Parse "\n\nHuman: ...\n\nAssistant: ..." (Bai et al. 2022, HH-RLHF) into messages."""
    before, *turns = TURN.split(_text(value, field))
    if before.strip():
        raise RowError(
            "not a transcript",
            f"'{field}' has text before its first turn: {_shown(before.strip())}",
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(role=roles[speaker], content=content.strip())
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    )


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"'{field}' must be a string, got {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "invalid text",
            f"'{field}' has a character that is not valid Unicode at position {error.start}",
        ) from error
    return value


def _checked(
    prompt: Text, chosen: Text, rejected: Text, where: str, fields: tuple[str, str]
) -> Pair:
    """Refuse what cannot teach a preference; `fields` names chosen and rejected for the user."""
    if _is_blank(prompt):
        raise RowError("empty prompt", f"the prompt has no text: {_shown(_plain(prompt))}")
    if is_chat(prompt) and prompt[-1]["role"] not in ("user", "tool"):
        raise RowError(
            "prompt does not end with the user",
            f"the messages before the completions end with role '{prompt[-1]['role']}' "
            f"({_shown(prompt[-1]['content'])}); they must end with user or tool",
        )
    for field, completion in zip(fields, (chosen, rejected), strict=True):
        _check_completion(field, completion)
    if _contents(chosen) == _contents(rejected):
        raise RowError("chosen equals rejected", f"both are {_shown(_plain(chosen))}")
    return Pair(prompt, chosen, rejected, where)


def _check_completion(field: str, completion: Text) -> None:
    if isinstance(completion, str):
        if not completion.strip():
            raise RowError("empty completion", f"'{field}' has no text: {_shown(completion)}")
        return
    if not completion:
        raise RowError("empty completion", f"'{field}' has no message after the prompt")
    roles = [message["role"] for message in completion]
    if roles[0] != "assistant" or roles[-1] != "assistant":
        raise RowError(
            "completion is not the assistant's",
            f"'{field}' must start and end with an assistant message, got {', '.join(roles)}",
        )
    if any(one["role"] == "assistant" and not one["content"].strip() for one in completion):
        raise RowError("empty completion", f"'{field}' has an assistant message without text")


def _is_blank(text: Text) -> bool:
    return not any(content.strip() for content in _contents(text))


def _contents(text: Text) -> tuple[str, ...]:
    return tuple(message["content"] for message in text) if is_chat(text) else (str(text),)


def _plain(text: Text) -> object:
    return list(text) if is_chat(text) else text


def _needs_text_or_messages(field: str, value: object) -> str:
    return f"'{field}' must be a string or a list of messages, got {_shown(value)}"


def _shown(value: object) -> str:
    """Show a value on one short line; anything but a string with its type."""
    text = repr(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN - 3]}..."
    return text if isinstance(value, str) else f"{type(value).__name__} {text}"
