"""Whether a chat template keeps what messages say: a template may drop text without a word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from penchant.data.records import REASONING, Message, Messages

# Templates write these marks in their own way; what stands between them must be kept.
THOUGHT = re.compile(r"</?think(?:ing)?>")


ANSWERS = "answers"
QUESTIONS = "system, user or tool messages, or tools"
# Many templates leave out earlier reasoning on purpose, while sampling as while training.
EARLIER = "earlier answers, or names of tool messages"


def lost_parts(messages: Messages, rendered: str, *, answer: bool) -> Iterator[tuple[str, str]]:
    """What a template has left out of messages.

    Args:
        messages: of a prompt, or of a completion.
        rendered: what the template made of them.
        answer: whether they are the completion, of which the assistant's are answers.

    Yields:
        `ANSWERS`, `QUESTIONS` or `EARLIER`, and the text that is missing.
    """
    text = _squeezed(rendered)
    for message in messages:
        spoken = EARLIER if message["role"] == "assistant" else QUESTIONS
        if answer and message["role"] == "assistant":
            spoken = ANSWERS
        for part in _said(message):
            if not _holds(text, part):
                yield spoken, part
        if message["role"] == "tool" and not _holds(text, message.get("name", "")):
            yield EARLIER, message["name"]
        for name in _names(message.get("tools", ())):
            if not _holds(text, name):
                yield QUESTIONS, name


def _said(message: Message) -> Iterator[str]:
    yield from THOUGHT.split(message["content"])
    for field in REASONING:
        yield message.get(field, "")
    for call in message.get("tool_calls", ()):
        yield from _names((call,))
        yield from _leaves(_parsed(call.get("function", call).get("arguments")))


def _names(functions: Sequence[dict[str, object]]) -> Iterator[str]:
    """The names of functions that are called or on offer, which either form gives."""
    for one in functions:
        function = one.get("function", one)
        if isinstance(function, dict):
            yield str(function.get("name", ""))


def _parsed(arguments: object) -> object:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _leaves(value: object) -> Iterator[str]:
    """The texts within arguments; templates write numbers and marks in ways of their own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)


def _holds(text: str, part: str) -> bool:
    """Whether a part stands in a text, apart from white space, or else as JSON writes it."""
    if (squeezed := _squeezed(part)) in text:
        return True
    written = (json.dumps(part, ensure_ascii=ascii) for ascii in (True, False))
    return any(_squeezed(one[1:-1]) in text for one in written) or not squeezed


def _squeezed(text: str) -> str:
    return "".join(text.split())
