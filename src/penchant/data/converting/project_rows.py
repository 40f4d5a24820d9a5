"""Rows of other projects' layouts, read and written one by one.

Pure functions, for the table in `projects.py`: `read_…` turns a foreign row into a canonical one,
which is checked afterwards; `write_…` turns a checked record into a foreign row. Both raise
`RowError` where that cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penchant.data.converting.exchange import (
    SYSTEM,
    NewRow,
    answer,
    answers,
    asked,
    chat_of,
    has,
    user,
    with_system,
)
from penchant.data.records import Label, Message, Messages, Pair, Text, is_chat
from penchant.data.rows.messages import plain
from penchant.data.rows.readable import only_content
from penchant.data.rows.row import Row, RowError, is_given, kind

Reader = Callable[[Row], NewRow]

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


def _one(completion: Text) -> Message:
    """The message of an answer, for layouts that hold one; more would be lost."""
    assert is_chat(completion)
    if len(completion) > 1:
        roles = ", ".join(message["role"] for message in completion)
        raise RowError(
            "completion of several messages",
            f"the layout holds one message as an answer, got {roles}; leave such rows out, "
            "or stay with the layout trl, which holds them all",
        )
    return completion[0]


# Axolotl


def read_behind(column: str, rejected: str = "rejected", chosen: str = "chosen") -> Reader:
    """Answers that stand beside the messages before them, each a text, a message or a list."""

    def read(row: Row) -> NewRow:
        prompt = row[column]
        turns = [user(prompt)] if isinstance(prompt, str) else list(prompt)  # type: ignore[call-overload]
        return {"prompt": with_system(row, turns), **answers(row, chosen, rejected)}

    return read


def write_axolotl(pair: Pair) -> NewRow:
    """`chat_template.default` of Axolotl's DPO."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {
        "messages": plain(pair.prompt),
        **{name: {**_one(text)} for name, text in sides.items()},
    }


def is_asked(row: Row, *completions: str) -> bool:
    """Whether there are a question and completions, and more than those three may be the prompt."""
    names = ("question", "instruction", "prompt", "input")
    texts = [name for name in names if kind(row.get(name)) == "text"]
    if texts and all(kind(row.get(name)) == "text" for name in completions):
        return True
    # Of chats, what stands beside them goes before their first message.
    chats = all(kind(row.get(name)) == "messages" for name in ("prompt", *completions))
    return chats and any(is_given(row, name) for name in (*SYSTEM, "history"))


def is_factory(row: Row) -> bool:
    """Whether the question is LLaMA-Factory's: with an input, a history, or as instruction."""
    more = "history" in row or (is_given(row, "prompt") and "input" in row)
    return more or is_given(row, "instruction")


def is_intel(row: Row) -> bool:
    """Whether the question is Axolotl's `chatml.intel` or its kin: maybe with a system message."""
    named = is_given(row, "question") or (not is_given(row, "prompt") and is_given(row, "input"))
    return (named or any(name in row for name in SYSTEM)) and not is_factory(row)


def read_asked(row: Row) -> NewRow:
    """A question with what belongs to it, and two answers."""
    return {"prompt": chat_of(row), **answers(row, "chosen", "rejected")}


def read_whole(row: Row) -> NewRow:
    """Two whole chats whose system message stands beside them."""
    return {side: with_system(row, answer(row[side])) for side in ("chosen", "rejected")}  # type: ignore[arg-type]


def read_asked_label(row: Row) -> NewRow:
    """A question with what belongs to it, and one judged answer."""
    completion = row["completion"] if is_given(row, "completion") else row["output"]
    label = row["label"] if is_given(row, "label") else row["kto_tag"]
    return {"prompt": chat_of(row), "completion": answer(completion), "label": label}


def read_listed(row: Row) -> NewRow:
    """LLaMA-Factory before ranking: two outputs, the better first."""
    sides = row["output"]
    assert isinstance(sides, list | tuple)
    chosen, rejected = sides
    return {"prompt": chat_of(row), "chosen": answer(chosen), "rejected": answer(rejected)}


def is_listed(row: Row) -> bool:
    """Whether `output` holds two answers."""
    listed = row.get("output")
    return has(row, "instruction") and isinstance(listed, list | tuple) and len(listed) == 2


def read_renamed(prompt: str, chosen: str, rejected: str) -> Reader:
    """A pair under other names, as it is."""

    def read(row: Row) -> NewRow:
        return {"prompt": row[prompt], "chosen": row[chosen], "rejected": row[rejected]}

    return read


def read_swift(row: Row) -> NewRow:
    """ms-swift: a chat with the better answer, and the other answer or chat beside it."""
    chat = row["messages"]
    if is_given(row, "rejected_messages"):
        return {"chosen": chat, "rejected": row["rejected_messages"]}
    assert isinstance(chat, list | tuple)
    return {
        "prompt": list(chat[:-1]),
        "chosen": list(chat[-1:]),
        "rejected": answer(row["rejected_response"]),
    }


def read_swift_query(row: Row) -> NewRow:
    """ms-swift before its messages: a question with what came before it, and two answers."""
    chat = asked(row, "\n")
    if isinstance(chat, str):
        chat = [user(chat)]
    return {
        "prompt": chat,
        "chosen": answer(row["response"]),
        "rejected": answer(row["rejected_response"]),
    }


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
        "system": only_content(label.prompt[0]) if len(roles) == 2 else "",
        "prompt": only_content(label.prompt[-1]),
        "completion": only_content(_one(label.completion)),
        "label": label.desirable,
    }


# LLaMA-Factory (ShareGPT)

SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def _said(message: Message) -> NewRow:
    if message["role"] not in SPEAKERS:
        raise RowError("role unknown to the layout", f"it has no role {message['role']}")
    return {"from": SPEAKERS[message["role"]], "value": only_content(message)}


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


def write_factory(pair: Pair) -> NewRow:
    """ShareGPT with a message a side, `ranking` in LLaMA-Factory."""
    assert is_chat(pair.prompt)
    return {
        "conversations": _alternating(pair.prompt),
        "chosen": _said(_one(pair.chosen)),
        "rejected": _said(_one(pair.rejected)),
    }


def read_factory_label(row: Row) -> NewRow:
    """ShareGPT with `kto_tag` in LLaMA-Factory."""
    chat = with_system(row, list(row["conversations"]))  # type: ignore[call-overload]
    return {"messages": chat, "label": row["kto_tag"]}


def write_factory_label(label: Label) -> NewRow:
    """ShareGPT with `kto_tag` in LLaMA-Factory."""
    assert is_chat(label.prompt)
    chat = (*label.prompt, _one(label.completion))
    return {"conversations": _alternating(chat), "kto_tag": label.desirable}


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
        "preferred_output": [{**_one(pair.chosen)}],
        "non_preferred_output": [{**_one(pair.rejected)}],
    }


def is_openai(row: Row) -> bool:
    """Whether a row is in OpenAI's preference format."""
    given = row.get("input")
    messages = isinstance(given, Mapping) and kind(given.get("messages")) == "messages"
    return messages and has(row, "preferred_output", "non_preferred_output")


# Amazon Bedrock

BEDROCK_LABELS = {"preferred": "chosen", "non-preferred": "rejected"}


def is_bedrock(row: Row) -> bool:
    """Whether the last message holds candidates in place of content (Amazon Nova's DPO)."""
    chat = row.get("messages")
    last = chat[-1] if isinstance(chat, list | tuple) and chat else None
    return isinstance(last, Mapping) and isinstance(last.get("candidates"), list | tuple)


def read_bedrock(row: Row) -> NewRow:
    """Amazon Nova's DPO: a chat whose last message holds a preferred candidate and another."""
    chat = row["messages"]
    assert isinstance(chat, list | tuple)
    system = row.get("system") or ()
    texts = [one["text"] for one in system] if isinstance(system, list | tuple) else [system]
    sides: NewRow = {}
    for candidate in chat[-1]["candidates"]:
        side = BEDROCK_LABELS.get(candidate.get("preferenceLabel"))
        if side is None or side in sides:
            raise RowError(
                "unknown label",
                "'candidates' must be one with preferenceLabel preferred and one non-preferred",
            )
        sides[side] = [{"role": chat[-1]["role"], "content": candidate["content"]}]
    first = [{"role": "system", "content": "\n".join(map(str, texts))}] if texts else []
    return {"prompt": [*first, *chat[:-1]], **sides}
