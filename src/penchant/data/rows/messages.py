"""Read and check the parts of a row: plain text, chat messages, transcripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from penchant.data.records import Message, Messages, Text, is_chat
from penchant.data.rows.row import RowError, needs_text_or_messages, shown

ROLES = ("system", "user", "assistant", "tool", "developer")
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
    """Require a list of messages, each with a known role and text, and keep only those."""
    if not isinstance(value, list | tuple):
        raise RowError("wrong type", needs_text_or_messages(field, value))
    if not value:
        reason = "empty prompt" if field == "prompt" else "empty completion"
        raise RowError(reason, f"'{field}' is an empty list of messages")
    return tuple(_message(one, f"{field}[{number}]") for number, one in enumerate(value))


def _message(value: object, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError("wrong type", f"'{field}' must be a message, got {shown(value)}")
    for key in ("role", "content"):
        if value.get(key) is None:
            has = ", ".join(map(str, value)) or "no fields"
            raise RowError("missing field", f"'{field}' has no '{key}' (it has: {has})")
    if value.get("tool_calls"):
        # The model would be trained to answer without the call that the answer rests on.
        raise RowError("tool calls", f"'{field}' has tool_calls, which only 'content' can hold")
    role = read_text(value["role"], f"{field}.role")
    if role not in ROLES:
        raise RowError(
            "unknown role", f"'{field}.role' must be one of {', '.join(ROLES)}, got {shown(role)}"
        )
    return Message(role=role, content=read_text(value["content"], f"{field}.content"))


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
    if roles[0] != "assistant" or roles[-1] != "assistant":
        raise RowError(
            "completion is not the assistant's",
            f"'{field}' must start and end with an assistant message, got {', '.join(roles)}",
        )
    if any(one["role"] == "assistant" and not one["content"].strip() for one in completion):
        raise RowError("empty completion", f"'{field}' has an assistant message without text")


def contents(text: Text) -> tuple[str, ...]:
    """What is said, whoever says it."""
    return tuple(message["content"] for message in text) if is_chat(text) else (str(text),)


def plain(text: Text) -> object:
    """A text as JSON would hold it."""
    return list(text) if is_chat(text) else text
