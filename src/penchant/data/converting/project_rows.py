"""Rows of other projects' layouts, read and written one by one.

Pure functions, for the table in `projects.py`: `read_…` turns a foreign row into a canonical one,
which is checked afterwards; `write_…` turns a checked record into a foreign row. Both raise
`RowError` where that cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data.records import Label, Message, Messages, Pair, Text, is_chat
from penchant.data.rows import pairs as formats
from penchant.data.rows.messages import plain
from penchant.data.rows.row import Row, RowError, is_given, kind, shown

NewRow = dict[str, Any]

# The canonical layout, which is TRL's


def pair_texts(pair: Pair) -> NewRow:
    """A pair's texts in the canonical layout."""
    texts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return {name: plain(text) for name, text in texts.items()}


def label_texts(label: Label) -> NewRow:
    """A label in the canonical layout."""
    return {
        "prompt": plain(label.prompt),
        "completion": plain(label.completion),
        "label": label.desirable,
    }


# Shared parts


def _one(completion: Text, field: str) -> Message:
    assert is_chat(completion)
    if len(completion) > 1:
        raise RowError(
            "completion of several messages",
            f"'{field}' has {len(completion)} messages; the layout holds one",
        )
    return completion[0]


def _with_system(row: Row, turns: list[NewRow]) -> list[NewRow]:
    system = row.get("system")
    head = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return [*head, *turns]


def _user(text: object) -> NewRow:
    return {"role": "user", "content": text}


def _assistant(value: object) -> list[object]:
    """A completion, however it is given, as messages."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return [value] if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]


def has(row: Row, *names: str) -> bool:
    """Whether a row has all these columns."""
    return all(is_given(row, name) for name in names)


# Axolotl


def read_axolotl(row: Row) -> NewRow:
    """`chat_template.default` of Axolotl's DPO: messages, and one message or text a side."""
    messages = row["messages"]
    prompt = [_user(messages)] if isinstance(messages, str) else messages
    sides = {name: _assistant(row[name]) for name in formats.PAIR_FIELDS}
    return {"prompt": prompt, **sides}


def write_axolotl(pair: Pair) -> NewRow:
    """`chat_template.default` of Axolotl's DPO."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {
        "messages": plain(pair.prompt),
        **{name: {**_one(text, name)} for name, text in sides.items()},
    }


def _question(row: Row) -> str:
    return next(name for name in ("question", "instruction", "prompt") if is_given(row, name))


def is_intel(row: Row, *completions: str) -> bool:
    """Whether a row is in Axolotl's `chatml.intel` or its kin: a question, maybe a system."""
    asked = kind(row.get("question")) == "text" or "system" in row
    names = ("question", "instruction", "prompt")
    found = [name for name in names if kind(row.get(name)) == "text"]
    return asked and len(found) == 1 and all(kind(row.get(name)) == "text" for name in completions)


def read_intel(row: Row) -> NewRow:
    """`chatml.intel` and its kin of Axolotl's DPO."""
    sides = {name: _assistant(row[name]) for name in formats.PAIR_FIELDS}
    return {"prompt": _with_system(row, [_user(row[_question(row)])]), **sides}


def read_axolotl_label(row: Row) -> NewRow:
    """`chatml.ultra` and its kin of Axolotl's KTO."""
    prompt = _with_system(row, [_user(row[_question(row)])])
    return {"prompt": prompt, "completion": _assistant(row["completion"]), "label": row["label"]}


def write_axolotl_label(label: Label) -> NewRow:
    """`chatml.ultra` of Axolotl's KTO."""
    assert is_chat(label.prompt)
    roles = [message["role"] for message in label.prompt]
    if roles not in (["user"], ["system", "user"]):
        raise RowError(
            "prompt of several turns",
            f"the layout holds one question with a system message, got {', '.join(roles)}",
        )
    return {
        # Also where there is none: it tells the layout from plain text.
        "system": label.prompt[0]["content"] if len(roles) == 2 else "",
        "prompt": label.prompt[-1]["content"],
        "completion": _one(label.completion, "completion")["content"],
        "label": label.desirable,
    }


# LLaMA-Factory (ShareGPT)

SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}
ROLES = {role: speaker for speaker, role in SPEAKERS.items()}


def _heard(turn: object) -> NewRow:
    if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
        raise RowError("wrong type", f"a turn must have 'from' and 'value', got {shown(turn)}")
    speaker = str(turn["from"])
    if speaker not in SPEAKERS:
        known = ", ".join(SPEAKERS)
        raise RowError("unknown role", f"'from' must be one of {known}, got {shown(speaker)}")
    return {"role": SPEAKERS[speaker], "content": turn["value"]}


def _said(message: Message) -> NewRow:
    if message["role"] not in ROLES:
        raise RowError("role unknown to the layout", f"it has no role {message['role']}")
    return {"from": ROLES[message["role"]], "value": message["content"]}


def _conversation(row: Row) -> list[NewRow]:
    turns = row["conversations"]
    if not isinstance(turns, list | tuple):
        raise RowError("wrong type", f"'conversations' must be a list, got {shown(turns)}")
    return _with_system(row, [_heard(turn) for turn in turns])


def _alternating(chat: Messages) -> list[NewRow]:
    """LLaMA-Factory skips chats in which the two sides do not take turns."""
    turns = chat[1:] if chat[0]["role"] == "system" else chat
    for number, message in enumerate(turns):
        if (message["role"] == "assistant") != bool(number % 2):
            raise RowError(
                "turns do not alternate",
                "the layout needs user or tool, then assistant, in turn; got "
                f"{', '.join(one['role'] for one in chat)}",
            )
    return [_said(message) for message in chat]


def read_factory(row: Row) -> NewRow:
    """ShareGPT with a message a side, `ranking` in LLaMA-Factory."""
    return {
        "prompt": _conversation(row),
        **{name: [_heard(row[name])] for name in formats.PAIR_FIELDS},
    }


def write_factory(pair: Pair) -> NewRow:
    """ShareGPT with a message a side, `ranking` in LLaMA-Factory."""
    assert is_chat(pair.prompt)
    return {
        "conversations": _alternating(pair.prompt),
        "chosen": _said(_one(pair.chosen, "chosen")),
        "rejected": _said(_one(pair.rejected, "rejected")),
    }


def read_factory_label(row: Row) -> NewRow:
    """ShareGPT with `kto_tag` in LLaMA-Factory."""
    return {"messages": _conversation(row), "label": row["kto_tag"]}


def write_factory_label(label: Label) -> NewRow:
    """ShareGPT with `kto_tag` in LLaMA-Factory."""
    assert is_chat(label.prompt) and is_chat(label.completion)
    _one(label.completion, "completion")
    chat = (*label.prompt, *label.completion)
    return {"conversations": _alternating(chat), "kto_tag": label.desirable}


def read_alpaca(row: Row) -> NewRow:
    """Alpaca with chosen and rejected, `ranking` in LLaMA-Factory."""
    context = row.get("input")
    asked = [row["instruction"], *([context] if context else [])]
    if not all(isinstance(text, str) for text in asked):
        raise RowError("wrong type", "'instruction' and 'input' must be strings")
    sides = {name: _assistant(row[name]) for name in formats.PAIR_FIELDS}
    # LLaMA-Factory joins the two by a line break.
    return {"prompt": _with_system(row, [_user("\n".join(map(str, asked)))]), **sides}


# OpenAI

OPENAI_INPUT = ("tools", "parallel_tool_calls")


def read_openai(row: Row) -> NewRow:
    """OpenAI's preference format; what `input` holds beside messages becomes columns."""
    given = row["input"]
    assert isinstance(given, Mapping)
    beside = {name: given[name] for name in OPENAI_INPUT if given.get(name) is not None}
    return {
        "prompt": given["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
        **beside,
    }


def write_openai(pair: Pair) -> NewRow:
    """OpenAI's preference format."""
    return {
        "input": {"messages": plain(pair.prompt)},
        "preferred_output": [{**_one(pair.chosen, "chosen")}],
        "non_preferred_output": [{**_one(pair.rejected, "rejected")}],
    }


def is_openai(row: Row) -> bool:
    """Whether a row is in OpenAI's preference format."""
    given = row.get("input")
    messages = isinstance(given, Mapping) and kind(given.get("messages")) == "messages"
    return messages and has(row, "preferred_output", "non_preferred_output")
