"""Messages for those who take plain text alone: a reader, a judge, another form of data."""

from __future__ import annotations

from penchant.data.records import Message, Text
from penchant.data.rows.messages import BESIDE_CONTENT, contents
from penchant.data.rows.row import RowError


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


def as_text(prompt: Text) -> str:
    """A prompt for a reader: with who said what, where more than one message was said."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return contents(prompt)[-1]
    said = zip(prompt, contents(prompt), strict=True)
    return "\n\n".join(f"{message['role'].capitalize()}: {text}" for message, text in said)
