"""Whether the texts of records are strings or chat messages, and the way between the two."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from penchant.data.converting.exchange import NewRow
from penchant.data.converting.project_rows import label_texts, pair_texts
from penchant.data.converting.templates import ChatTemplate
from penchant.data.records import DataError, Label, Message, Pair, Text, is_chat
from penchant.data.rows.labels import to_label
from penchant.data.rows.pairs import to_pair
from penchant.data.rows.readable import only_content
from penchant.data.rows.row import RowError

FORMS = ("chat", "strings")


def text_form(to: str | None, template: str | Path | None) -> TextForm:
    """How texts are to be written.

    Raises:
        DataError: there is no such form or template, or a template without a form.
    """
    if to not in (None, *FORMS):
        raise DataError(f"text must be chat or strings, got {to!r}")
    if template and not to:
        raise DataError("template says how text is converted; give text as chat or strings too")
    return TextForm(to, ChatTemplate.load(template) if template else None)


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

    def row(self, row: NewRow, where: str, lost: Counter[str]) -> NewRow:
        """A row of a pair or a label in the form asked for."""
        if self.to is None:
            return row
        if "label" in row:
            return {**row, **label_texts(self.label(to_label(row, None, where), lost))}
        pair = to_pair(row, None, where)
        assert pair is not None, "only a label makes a tie"
        return {**row, **pair_texts(self.pair(pair, lost))}

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
