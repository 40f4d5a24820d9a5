"""The parts of a row: what a message may hold, and what is refused of prompts and completions."""

from __future__ import annotations

import json
import re

from penchant.data.records import REASONING, Message, Text, is_chat
from penchant.data.rows.row import TEMPLATE_COLUMNS, Row, RowError, shown

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
WITHOUT_WIDTH = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))
HUMAN_TURN = re.compile(r"(?:\A|\n\n)Human:")


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


def refuse_later_columns(message: Message, field: str) -> None:
    """Refuse what a template is given once a chat in a message that is not its first."""
    for name in TEMPLATE_COLUMNS:
        if message.get(name):
            raise RowError(
                f"{name} in a later message",
                f"'{field}' has '{name}', which a template is given once for the whole chat; put "
                "it into a column, or into the first message of the prompt",
            )


def with_template_columns(prompt: Text, row: Row) -> Text:
    """Put tools and options of the chat template, beside a prompt, into its first message."""
    places = (row, prompt[0]) if is_chat(prompt) else (row,)
    if not any(place.get(name) for place in places for name in TEMPLATE_COLUMNS):
        return prompt
    from penchant.data.rows.template import with_columns

    return with_columns(prompt, row)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: no character, or white space and spaces without width alone."""
    return not text.translate(WITHOUT_WIDTH).strip()


def check_prompt(prompt: Text) -> None:
    """Refuse a prompt without text, or one that asks nothing of the assistant."""
    if all(is_blank(content) for content in contents(prompt)):
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
        if is_blank(completion):
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
    refuse_later_columns(completion[0], f"{field}[0]")
    if any(is_blank(said(one)) for one in completion if one["role"] == "assistant"):
        raise RowError("empty completion", f"'{field}' has an assistant message without text")


def said(message: Message) -> str:
    """What a message says: its reasoning, its content and the functions that it calls."""
    calls = message.get("tool_calls")
    parts = [*(message.get(name, "") for name in REASONING), message["content"]]
    return "\n".join(filter(None, [*parts, json.dumps(calls) if calls else ""]))


def quoted(text: Text) -> str:
    """A text for an error, on one short line; of messages, what the last one says."""
    return shown(said(text[-1]) if is_chat(text) else text)


def contents(text: Text) -> tuple[str, ...]:
    """What is said, whoever says it."""
    return tuple(map(said, text)) if is_chat(text) else (str(text),)


def plain(text: Text) -> object:
    """A text as JSON would hold it."""
    return list(text) if is_chat(text) else text
