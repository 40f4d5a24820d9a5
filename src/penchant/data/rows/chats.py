"""Read the messages of a row: chats in the forms of several libraries, and transcripts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from penchant.data.records import REASONING, Message, Messages
from penchant.data.rows.messages import (
    BESIDE_CONTENT,
    ROLE_NAMES,
    ROLES,
    quoted,
    read_text,
    refuse_later_columns,
)
from penchant.data.rows.refusing import neither_text_nor_messages
from penchant.data.rows.row import RowError, refuse_media, shown

TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def read_messages(value: object, field: str) -> Messages:
    """Require one or several messages, each with a known role and text.

    A message has `role` and `content`, or `from` and `value` (ShareGPT), or `parts` (Gemini).
    Content in parts is joined by line breaks where all of them are text.
    """
    if isinstance(value, Mapping):
        value = (value,)
    if not isinstance(value, list | tuple):
        raise neither_text_nor_messages(field, value)
    if not value:
        reason = "empty prompt" if field == "prompt" else "empty completion"
        raise RowError(reason, f"'{field}' is an empty list of messages")
    messages = tuple(_message(one, f"{field}[{number}]") for number, one in enumerate(value))
    for number, message in enumerate(messages[1:], start=1):
        refuse_later_columns(message, f"{field}[{number}]")
    return messages


def _message(value: object, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError("wrong type", f"'{field}' must be a message, got {shown(value)}")
    refuse_media(value, field)
    names = ("from", "value") if value.get("role") is None else ("role", "content")
    said = value.get(names[1]) if value.get("parts") is None else value["parts"]
    calls = value.get("tool_calls")
    if calls:
        from penchant.data.rows.template import read_calls

        calls = read_calls(calls, f"{field}.tool_calls")
        said = "" if said is None else said
    if value.get(names[0]) is None or said is None:
        lacking = "role" if value.get(names[0]) is None else "content"
        has = ", ".join(map(str, value)) or "no fields"
        raise RowError("missing field", f"'{field}' has no '{lacking}' (it has: {has})")
    role = read_text(value[names[0]], f"{field}.{names[0]}")
    if (known := ROLE_NAMES.get(role, role)) not in ROLES:
        raise RowError(
            "unknown role",
            f"'{field}.{names[0]}' must be one of {', '.join((*ROLES, *ROLE_NAMES))}, "
            f"got {shown(role)}",
        )
    content = _content(said, f"{field}.{names[1]}")
    message = Message(role=known, content=content)
    if role == "function_call" and (call := _called(content)):
        message = Message(role=known, content="", tool_calls=[call])
    beside = {name: value[name] for name in BESIDE_CONTENT if value.get(name)}
    for name in (*REASONING, "name"):
        if name in beside:
            read_text(beside[name], f"{field}.{name}")
    if calls:
        beside["tool_calls"] = calls
    return {**message, **beside}  # type: ignore[typeddict-item]


def _content(said: object, field: str) -> str:
    """Text, or the text of parts that hold nothing else."""
    if not isinstance(said, list | tuple):
        return read_text(said, field)
    texts = []
    for number, part in enumerate(said):
        place = f"{field}[{number}]"
        if not isinstance(part, Mapping):
            raise RowError("wrong type", f"'{place}' must be a part with text, got {shown(part)}")
        refuse_media(part, place, part.get("type"))
        if part.get("type", "text") not in ("text", "input_text", "output_text"):
            raise RowError("part that is not text", f"'{place}' is of type {shown(part['type'])}")
        name = "value" if "value" in part and "text" not in part else "text"
        texts.append(read_text(part.get(name), f"{place}.{name}"))
    return "\n".join(texts)


def _parsed(text: str) -> Any:
    """What a text is as JSON; the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _called(text: str) -> dict[str, object] | None:
    """The call that a ShareGPT turn of `function_call` writes as JSON; None where it is text."""
    call = _parsed(text)
    named = isinstance(call, dict) and isinstance(call.get("name"), str)
    return {"type": "function", "function": call} if named else None


def read_transcript(value: object, field: str) -> Messages:
    r"""Parse "\n\nHuman: ...\n\nAssistant: ..." (Bai et al. 2022, HH-RLHF) into messages."""
    before, *turns = TURN.split(read_text(value, field))
    if before.strip():
        raise RowError(
            "not a transcript",
            f"'{field}' has text before its first turn: {shown(before.strip())}",
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(role=roles[speaker], content=content.strip())
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    )


def read_parts(
    prompt: object,
    completions: Mapping[str, object],
    split: Callable[..., tuple[Messages, ...]],
) -> tuple[Messages, ...]:
    """Read a prompt and its completions where not all of them are strings.

    Args:
        prompt: a string or messages.
        completions: strings or messages by the field they came from; messages may repeat the
            prompt.
        split: divides whole chats, one a completion, into their prompt and what follows it.

    Returns:
        The prompt, then the completions in order.

    Raises:
        RowError: when a part is not what it should be.
    """
    sides = tuple(_completion(value, field) for field, value in completions.items())
    if isinstance(prompt, str):
        return _with_text_prompt(read_text(prompt, "prompt"), sides, split)
    messages = read_messages(prompt, "prompt")
    if all(side[: len(messages)] == messages for side in sides):
        sides = tuple(side[len(messages) :] for side in sides)
    return messages, *sides


def _completion(value: object, field: str) -> Messages:
    if isinstance(value, str):
        return (Message(role="assistant", content=read_text(value, field)),)
    return read_messages(value, field)


def _with_text_prompt(
    prompt: str, sides: tuple[Messages, ...], split: Callable[..., tuple[Messages, ...]]
) -> tuple[Messages, ...]:
    """Place a plain prompt before chat completions, which may already repeat it."""
    if all(side[0]["role"] == "assistant" for side in sides):
        return (Message(role="user", content=prompt),), *sides
    messages, *answers = split(*sides)
    asked = [one["content"].strip() for one in messages if one["role"] == "user"]
    if prompt.strip() not in asked:
        raise RowError(
            "prompt mismatch",
            f"'prompt' is {shown(prompt)}, but no user message before the completion says "
            "that; drop the field to take the messages themselves as the prompt",
        )
    return messages, *answers


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
        raise RowError("chosen equals rejected", f"both end in {quoted(chosen)}")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared and chosen[0] == rejected[0]:
        raise RowError(
            "empty completion", f"a chat ends with its first message, {shown(chosen[0])}"
        )
    if not shared:
        raise RowError(
            "no shared prompt",
            f"chosen starts with {shown(chosen[0]['content'])}, rejected with "
            f"{shown(rejected[0]['content'])}; both must start with the messages of one prompt",
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]
