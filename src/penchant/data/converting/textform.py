"""Whether the texts of records are strings or chat messages, and the way between the two."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from penchant.data.converting.templates import ChatTemplate
from penchant.data.records import Label, Message, Pair, Text, is_chat
from penchant.data.rows.messages import only_content
from penchant.data.rows.row import RowError


@dataclass(frozen=True)
class TextForm:
    """Whether texts are written as strings or as chat.

    Args:
        to: chat, strings, or None for as they are.
        template: how strings stand for chats; without one a string is a single message.
    """

    to: str | None
    template: ChatTemplate | None

    def texts(self, prompt: Text, completion: Text, lost: Counter[str]) -> tuple[Text, Text]:
        """Prompt and completion in the form asked for."""
        if self.to == "chat" and not is_chat(prompt) and not is_chat(completion):
            if self.template:
                return self.template.to_messages(prompt, completion)
            user, answer = Message(role="user", content=prompt), completion
            return (user,), (Message(role="assistant", content=answer),)
        if self.to == "strings" and is_chat(prompt) and is_chat(completion):
            if self.template:
                strings = self.template.to_strings(prompt, completion)
                lost[
                    f"chat as it was: {self.template.name} does not give it back whole"
                ] += not self._back(strings, (prompt, completion))
                return strings
            if [one["role"] for one in (*prompt, *completion)] != ["user", "assistant"]:
                raise RowError(
                    "chat of several messages",
                    "only a template can write it as strings; give template",
                )
            return only_content(prompt[0]), only_content(completion[0])
        return prompt, completion

    def _back(self, strings: tuple[str, str], chat: tuple[Text, Text]) -> bool:
        assert self.template
        try:
            return self.template.to_messages(*strings) == chat
        except RowError:
            return False

    def pair(self, pair: Pair, lost: Counter[str]) -> Pair:
        """The pair in the form asked for."""
        prompt, chosen = self.texts(pair.prompt, pair.chosen, lost)
        other, rejected = self.texts(pair.prompt, pair.rejected, Counter())
        if prompt != other:
            raise RowError("prompts differ", "the completions' prompts are different chats")
        return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)

    def label(self, label: Label, lost: Counter[str]) -> Label:
        """The label in the form asked for."""
        prompt, completion = self.texts(label.prompt, label.completion, lost)
        return replace(label, prompt=prompt, completion=completion)
