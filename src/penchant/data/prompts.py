"""Read prompts for a model to answer, with whatever else their rows say.

Anything that other training data may be is taken: its prompts are read and its completions left
among the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from penchant.data.opening import Sources
from penchant.data.read import read_rows
from penchant.data.records import Data, Text, prompt_key
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.chats import read_messages
from penchant.data.rows.messages import check_prompt, read_text, with_template_columns
from penchant.data.rows.refusing import lacks, neither_text_nor_messages
from penchant.data.rows.row import Kind, Layout, Row, RowError, fit, is_given, kind, shown

if TYPE_CHECKING:
    from penchant.data.opening import Source

TEXT = Layout("prompt (text)", ("prompt",))
CHAT = Layout("prompt (chat)", ("prompt",))
QUESTION = Layout("question", ("question",))
INSTRUCTION = Layout("instruction, with or without input", ("instruction",))
QUERY = Layout("query", ("query",))
TURNS = Layout("turns, the first of which is the prompt", ("turns",))
NUMBERED = Layout("question_id, text", ("text", "question_id"))
WHOLE_CHAT = Layout("messages (chat)", ("messages",))
PLAIN = (QUESTION, INSTRUCTION, QUERY)
PROMPT_LAYOUTS = (
    TEXT,
    CHAT,
    *PLAIN,
    TURNS,
    NUMBERED,
    WHOLE_CHAT,
)  # rows that hold no judged answer
LAYOUTS = (*PROMPT_LAYOUTS, *formats.LAYOUTS, *labels.LAYOUTS)


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer.

    Args:
        prompt: a string, or messages that end with the user's.
        fields: the other columns of its row, as they were read.
        where: the file and 1-based line or row, such as `prompts.jsonl:17`.
    """

    noun: ClassVar[str] = "prompt"
    prompt: Text
    fields: Mapping[str, Any]
    where: str

    def content(self) -> list[object]:
        """What makes the prompt what it is, as JSON: all but `where`."""
        return [self.prompt, json.dumps(dict(self.fields), sort_keys=True, default=str)]


def read_prompts(
    source: Source,
    *,
    strict: bool = False,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Data[Prompt]:
    """Read the prompts of a source, in any recognised layout.

    A row gives its prompt as `prompt` (a string or messages), `question`, `instruction` (a
    non-empty `input` follows it after a blank line), `query`, or `messages`, where an answer at
    the end is left off. Pairs and labels give theirs, each distinct prompt once.

    Args:
        source: anything that `read_pairs` takes, or a `.txt` file with one prompt a line.
        strict, split, columns: as for `read_pairs`.

    Returns:
        The prompts, with every row that was left out.

    Raises:
        DataError: when nothing can be read, no row is usable, or `strict` and a row is refused.
        MissingDataError: a `DataError` and a `FileNotFoundError`, when the path does not exist.
        TypeError: when the source is of another type.
    """
    read = read_rows(Sources.of(source, split, columns), PROMPTS, strict)
    judged = {layout.name for layout in (*formats.LAYOUTS, *labels.LAYOUTS)}
    if judged.isdisjoint(read.layouts):
        return read
    prompts = _distinct(read.records)
    return replace(read, records=prompts, repeated=len(read.records) - len(prompts))


def recognise_prompt(row: object) -> Layout | None:
    """Return the layout that a row's fields and their types fit, or None."""
    if not isinstance(row, Mapping):
        return None
    if judged := formats.recognise(row) or labels.recognise_label(row):
        return judged
    if is_given(row, "prompt"):
        return {"text": TEXT, "messages": CHAT}.get(kind(row["prompt"]) or "")
    for layout in PLAIN:
        if is_given(row, layout.fields[0]):
            return layout if kind(row[layout.fields[0]]) == "text" else None
    if is_given(row, "question_id") and kind(row.get("text")) == "text":
        return NUMBERED
    if formats.lists_texts(row.get("turns")):
        return TURNS
    return WHOLE_CHAT if kind(row.get("messages")) == "messages" else None


def to_prompt(row: object, layout: Layout | None, where: str) -> Prompt:
    """Turn a row into a prompt.

    Args:
        row: the fields by name; those that are not the prompt are kept.
        layout: the layout of the rows before, or None when no row has fitted one yet.
        where: the file and line, kept in the prompt.

    Returns:
        The prompt.

    Raises:
        RowError: when the row is in no layout, in another one than `layout`, or its prompt is
            empty or not the user's.
    """
    row, layout_of_row = fit(row, layout, recognise_prompt, _misfit, ("input", "context"))
    prompt = with_template_columns(_prompt(row, layout_of_row), row)
    check_prompt(prompt)
    used = {"prompt", "input"} if layout_of_row is INSTRUCTION else {"prompt"}
    used |= {layout_of_row.fields[0]} if layout_of_row in (*PLAIN, NUMBERED) else set()
    return Prompt(prompt, {str(k): v for k, v in row.items() if k not in used}, where)


PROMPTS: Kind[Prompt] = Kind("prompt", LAYOUTS, recognise_prompt, to_prompt)


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt_key(prompt), prompt)
    return list(first.values())


def _prompt(row: Row, layout: Layout) -> Text:
    if layout in formats.LAYOUTS:
        return formats.prompt_of(row, layout)
    if layout in labels.LAYOUTS:
        return labels.prompt_of(row, layout)
    field = layout.fields[0]
    if layout is CHAT:
        return read_messages(row[field], field)
    if layout is WHOLE_CHAT:
        chat = read_messages(row[field], field)
        return labels.split_last_turn(chat)[0] if chat[-1]["role"] == "assistant" else chat
    text = read_text(row[field][0] if layout is TURNS else row[field], field)  # type: ignore[index]
    if layout is INSTRUCTION and is_given(row, "input"):
        context = read_text(row["input"], "input")
        return f"{text}\n\n{context}" if context.strip() else text
    return text


def _misfit(row: Row, layout: Layout | None) -> RowError:
    """Say why a row fits no layout."""
    names = ("prompt", *(one.fields[0] for one in (*PLAIN, TURNS, WHOLE_CHAT)))
    field = next((name for name in names if is_given(row, name)), None)
    if field is None:
        return lacks(layout or TEXT, row, layout.fields if layout else names)
    if field == "prompt":
        return neither_text_nor_messages(field, row[field])
    lists = {"messages": "a list of messages", "turns": "a list of strings"}
    wanted = lists.get(field, "a string")
    return RowError("wrong type", f"'{field}' must be {wanted}, got {shown(row[field])}")
