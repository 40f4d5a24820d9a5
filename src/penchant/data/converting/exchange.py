"""What the layouts of other projects are made of: the entry of the table, and shared readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from penchant.data.columns import pick
from penchant.data.rows.chats import read_messages
from penchant.data.rows.row import Row, RowError, first_role, is_given, shown

NewRow = dict[str, Any]
Kind = Literal["pairs", "labels", "judgements"]
# What a question may be called; the first that a row has is it, and `input` follows it.
# What the system message beside a prompt may be called.
SYSTEM = ("system", "system_prompt", "system_message")
QUESTIONS = ("prompt", "instruction", "question", "query", "input")


@dataclass(frozen=True)
class Exchange:
    """A layout of another project.

    Args:
        project: as `--to` and `--from` call it.
        columns: for messages.
        kind: what a row holds; `data build` makes pairs of judgements.
        used: the columns that `read` takes; others stand beside them.
        matches: whether a row is in it.
        read: a row as a canonical one, or as one of the forms of `data build`.
        write: a record as a row; None where the layout is only read.
        others: whether further columns may stand beside; if not, `inner` names those that have
            a place within the first column of the layout.
    """

    project: str
    columns: str
    kind: Kind
    used: tuple[str, ...]
    matches: Callable[[Row], bool]
    read: Callable[[Row], NewRow]
    write: Callable[[Any], NewRow] | None = None
    others: bool = True
    inner: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The project and its columns."""
        return f"{self.project} ({self.columns})"


def has(row: Row, *names: str) -> bool:
    """Whether a row has all these columns, or fields within columns as `question.full_text`."""
    return all(pick(row, name) is not None for name in names)


def user(content: object) -> NewRow:
    """A message of the user's."""
    return {"role": "user", "content": content}


def asked(row: Row, joint: str) -> Any:
    """The prompt of a row whose question, input, history and system message are columns.

    Args:
        row: with a question by any of `QUESTIONS`.
        joint: what stands between a question and its input.

    Returns:
        The question as it is where it stands alone; a list of messages where turns come before
        it; None where the row asks nothing.

    Raises:
        RowError: when a part is not what it should be.
    """
    name = next((name for name in QUESTIONS if is_given(row, name)), None)
    if name is None:
        return None
    question: Any = row[name]
    context = row.get("input") if name != "input" else None
    if isinstance(context, str) and context.strip():
        if not isinstance(question, str):
            raise RowError("wrong type", f"'{name}' must be a string beside 'input'")
        question = f"{question}{joint}{context}"
    before = [] if first_role(question) == "system" else _system(row)
    before += _history(row)
    if not before:
        return question
    return [*before, *([user(question)] if isinstance(question, str) else question)]


def _system(row: Row) -> list[NewRow]:
    system = next((row[name] for name in SYSTEM if row.get(name)), None)
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def with_system(row: Row, turns: list[NewRow]) -> list[NewRow]:
    """Turns after the system message that stands beside them."""
    return [*_system(row), *turns]


def _history(row: Row) -> list[NewRow]:
    """Earlier turns, as pairs of question and answer (LLaMA-Factory) or as messages."""
    turns = row.get("history") or []
    if not isinstance(turns, list | tuple):
        raise RowError("wrong type", f"'history' must be a list of turns, got {shown(turns)}")
    if all(isinstance(turn, Mapping) for turn in turns):
        return [dict(one) for one in read_messages(turns, "history")] if turns else []
    messages = []
    for turn in turns:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise RowError("wrong type", f"a turn of 'history' must be a pair, got {shown(turn)}")
        messages += [user(turn[0]), {"role": "assistant", "content": turn[1]}]
    return messages


def answers(row: Row, chosen: str, rejected: str) -> NewRow:
    """Both completions, however each is given, as messages."""
    return {"chosen": answer(pick(row, chosen)), "rejected": answer(pick(row, rejected))}


def answer(value: object) -> list[object]:
    """A completion, however it is given, as messages."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return [value] if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]


def chat_of(row: Row, joint: str = "\n") -> list[NewRow]:
    """As `asked`, always as messages; LLaMA-Factory joins by a line break."""
    prompt = asked(row, joint)
    return [user(prompt)] if isinstance(prompt, str) else list(prompt)


def unpacked(text: object) -> Any:
    """A list that a cell holds as JSON; anything else as it is."""
    if not isinstance(text, str) or not text.lstrip().startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
