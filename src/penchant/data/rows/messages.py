"""Read and check the parts of a row: plain text, chat messages, transcripts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from penchant.data.records import REASONING, Message, Messages, Text, is_chat
from penchant.data.rows.row import TEMPLATE_COLUMNS, Row, RowError, refuse_media, shown

ROLES = ("system", "user", "assistant", "tool", "developer")
# What ShareGPT, Gemini and OASST call them.
ROLE_NAMES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant",
    "function_call": "assistant", "function": "tool", "observation": "tool",
}  # fmt: skip
ANSWERING = ("assistant", *(name for name, role in ROLE_NAMES.items() if role == "assistant"))
# What a message may say beside its content; the chat template is given it.
BESIDE_CONTENT = (*REASONING, "tool_calls", "name", "tool_call_id", *TEMPLATE_COLUMNS)
MESSAGE_FIELDS = ("role", "content", "from", "value", "parts", *BESIDE_CONTENT)
HUMAN_TURN = re.compile(r"(?:\A|\n\n)Human:")
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def read_text(value: object, field: str) -> str:
    """Require a string that can be encoded; `field` names it for the user."""
    if not isinstance(value, str):
        raise RowError("wrong type", f"'{field}' must be a string, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "invalid text",
            f"'{field}' has a character that is not valid Unicode at position {error.start}",
        ) from error
    return value


def read_messages(value: object, field: str) -> Messages:
    """Require one or several messages, each with a known role and text.

    A message has `role` and `content`, or `from` and `value` (ShareGPT), or `parts` (Gemini).
    Content in parts is joined by line breaks where all of them are text.
    """
    if isinstance(value, Mapping):
        value = (value,)
    if not isinstance(value, list | tuple):
        raise RowError.neither_text_nor_messages(field, value)
    if not value:
        reason = "empty prompt" if field == "prompt" else "empty completion"
        raise RowError(reason, f"'{field}' is an empty list of messages")
    messages = tuple(_message(one, f"{field}[{number}]") for number, one in enumerate(value))
    for number, message in enumerate(messages[1:], start=1):
        _require_no_template_columns(message, f"{field}[{number}]")
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


def _require_no_template_columns(message: Message, field: str) -> None:
    """Refuse what a template is given once a chat in a message that is not its first."""
    for name in TEMPLATE_COLUMNS:
        if message.get(name):
            raise RowError(
                f"{name} in a later message",
                f"'{field}' has '{name}', which a template is given once for the whole chat; put "
                "it into a column, or into the first message of the prompt",
            )


def _content(said: object, field: str) -> str:
    """Text, or the text of parts that hold nothing else."""
    if not isinstance(said, list | tuple):
        return read_text(said, field)
    texts = []
    for number, part in enumerate(said):
        place = f"{field}[{number}]"
        if not isinstance(part, Mapping):
            raise RowError("wrong type", f"'{place}' must be a part with text, got {shown(part)}")
        if part.get("type", "text") not in ("text", "input_text", "output_text"):
            raise RowError("part that is not text", f"'{place}' is of type {shown(part['type'])}")
        texts.append(read_text(part.get("text"), f"{place}.text"))
    return "\n".join(texts)


def with_template_columns(prompt: Text, row: Row) -> Text:
    """Put tools and options of the chat template, beside a prompt, into its first message."""
    places = (row, prompt[0]) if is_chat(prompt) else (row,)
    if not any(place.get(name) for place in places for name in TEMPLATE_COLUMNS):
        return prompt
    from penchant.data.rows.template import with_columns

    return with_columns(prompt, row)


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
) -> tuple[Text, ...]:
    """Read a prompt and its completions: all of them as strings, or all as messages.

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
    if isinstance(prompt, str) and all(isinstance(value, str) for value in completions.values()):
        texts = {"prompt": prompt, **completions}
        return tuple(read_text(value, field) for field, value in texts.items())
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
) -> tuple[Text, ...]:
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


def check_prompt(prompt: Text) -> None:
    """Refuse a prompt without text, or one that asks nothing of the assistant."""
    if not any(content.strip() for content in contents(prompt)):
        raise RowError("empty prompt", f"the prompt has no text: {shown(plain(prompt))}")
    if is_chat(prompt) and prompt[-1]["role"] not in ("user", "tool"):
        raise RowError(
            "prompt does not end with the user",
            f"the messages before the completion end with role '{prompt[-1]['role']}' "
            f"({shown(prompt[-1]['content'])}); they must end with user or tool",
        )


def check_completion(completion: Text, field: str) -> None:
    """Refuse a completion without text, or one that is not the assistant's."""
    if isinstance(completion, str):
        if not completion.strip():
            raise RowError("empty completion", f"'{field}' has no text: {shown(completion)}")
        return
    if not completion:
        raise RowError("empty completion", f"'{field}' has no message after the prompt")
    roles = [message["role"] for message in completion]
    if {roles[0], roles[-1]} != {"assistant"} or {"system", "developer"} & {*roles}:
        raise RowError(
            "completion is not the assistant's",
            f"'{field}' must start and end with an assistant message, with turns of user, tool and "
            f"assistant between, got {', '.join(roles)}; put what is asked into the prompt, and "
            "end both chats with an answer",
        )
    _require_no_template_columns(completion[0], f"{field}[0]")
    if not all(said(one).strip() for one in completion if one["role"] == "assistant"):
        raise RowError("empty completion", f"'{field}' has an assistant message without text")


def said(message: Message) -> str:
    """What a message says: its reasoning, its content and the functions that it calls."""
    calls = message.get("tool_calls")
    parts = [*(message.get(name, "") for name in REASONING), message["content"]]
    return "\n".join(filter(None, [*parts, json.dumps(calls) if calls else ""]))


def only_content(message: Message) -> str:
    """A message's content, where the form to be written holds nothing else.

    Raises:
        RowError: the message says more.
    """
    if more := [name for name in BESIDE_CONTENT if message.get(name)]:
        raise RowError(
            "message that says more than its text",
            f"the layout has no place for {', '.join(more)} of a message",
        )
    return message["content"]


def contents(text: Text) -> tuple[str, ...]:
    """What is said, whoever says it."""
    return tuple(map(said, text)) if is_chat(text) else (str(text),)


def plain(text: Text) -> object:
    """A text as JSON would hold it."""
    return list(text) if is_chat(text) else text
