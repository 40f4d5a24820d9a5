"""The preference layouts of other projects: how to tell, read and write each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penchant.data.converting import project_rows as foreign
from penchant.data.converting.exchange import SYSTEM, Exchange, Kind, NewRow, has
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Layout, Row, is_given


def _trl(layout: Layout, of: Kind) -> Exchange:
    recognise = formats.recognise if of == "pairs" else labels.recognise_label
    write = foreign.pair_texts if of == "pairs" else foreign.label_texts
    used = layout.fields
    if of == "labels":
        used = (*used, *(alias for field in used for alias in labels.ALIASES.get(field, ())))
    return Exchange("trl", layout.name, of, used, lambda row: recognise(row) == layout, dict, write)


def _renamed(project: str, prompt: str, chosen: str, rejected: str) -> Exchange:
    """A pair under other names, and without a canonical one beside it."""
    names = (prompt, chosen, rejected)

    def matches(row: Row) -> bool:
        return has(row, *names) and not has(row, *PAIR)

    read = foreign.read_renamed(*names)
    return Exchange(project, ", ".join(names), "pairs", names, matches, read)


def _behind(project: str, chat: str, write: Callable[[Any], NewRow] | None = None) -> Exchange:
    """A pair of answers to the messages in the column `chat`."""
    return Exchange(
        project,
        f"{chat}, chosen, rejected",
        "pairs",
        (chat, *SYSTEM, *PAIR),
        lambda row: has(row, chat, *PAIR) and not is_given(row, "prompt"),
        foreign.read_behind(chat),
        write,
    )


PAIR = formats.PAIR_FIELDS
ASKED = (*SYSTEM, "question", "instruction", "prompt", "input", "history")
LAYOUTS = (
    *(_trl(layout, "pairs") for layout in formats.LAYOUTS),
    *(_trl(layout, "labels") for layout in labels.LAYOUTS),
    _behind("axolotl", "messages", foreign.write_axolotl),
    Exchange(
        "axolotl",
        "system, question or prompt, chosen, rejected",
        "pairs",
        ASKED + PAIR,
        lambda row: foreign.is_asked(row, *PAIR) and foreign.is_intel(row),
        foreign.read_asked,
    ),
    Exchange(
        "axolotl",
        "system, chosen, rejected (chats)",
        "pairs",
        (*SYSTEM, *PAIR),
        lambda row: (
            formats.recognise(row) is formats.WHOLE_CHAT
            and any(is_given(row, name) for name in SYSTEM)
        ),
        foreign.read_whole,
    ),
    Exchange(
        "axolotl",
        "system, question or prompt, completion, label",
        "labels",
        (*ASKED, "completion", "label"),
        lambda row: (
            foreign.is_asked(row, "completion") and has(row, "label") and foreign.is_intel(row)
        ),
        foreign.read_asked_label,
        foreign.write_axolotl_label,
    ),
    _behind("llama-factory", "conversations", foreign.write_factory),
    Exchange(
        "llama-factory",
        "conversations, kto_tag",
        "labels",
        ("conversations", *SYSTEM, "kto_tag"),
        lambda row: has(row, "conversations", "kto_tag"),
        foreign.read_factory_label,
        foreign.write_factory_label,
    ),
    Exchange(
        "llama-factory",
        "instruction, input, history, system, chosen, rejected",
        "pairs",
        ASKED + PAIR,
        lambda row: foreign.is_asked(row, *PAIR) and foreign.is_factory(row),
        foreign.read_asked,
    ),
    Exchange(
        "llama-factory",
        "instruction, input, history, system, output, kto_tag",
        "labels",
        (*ASKED, "output", "completion", "kto_tag", "label"),
        lambda row: (
            (
                (foreign.is_asked(row, "output") and has(row, "kto_tag"))
                or (foreign.is_asked(row, "completion") and has(row, "label"))
            )
            and foreign.is_factory(row)
        ),
        foreign.read_asked_label,
    ),
    Exchange(
        "llama-factory",
        "instruction, input, history, system, output (two, the better first)",
        "pairs",
        (*ASKED, "output"),
        foreign.is_listed,
        foreign.read_listed,
    ),
    _behind("ultrainteract", "trajectory"),
    Exchange(
        "bedrock",
        "system, messages (candidates with preferenceLabel in the last)",
        "pairs",
        ("schemaVersion", "system", "messages"),
        foreign.is_bedrock,
        foreign.read_bedrock,
    ),
    Exchange(
        "ms-swift",
        "messages, rejected_response or rejected_messages",
        "pairs",
        ("messages", "rejected_response", "rejected_messages"),
        lambda row: (
            has(row, "messages")
            and (has(row, "rejected_response") or has(row, "rejected_messages"))
        ),
        foreign.read_swift,
    ),
    Exchange(
        "ms-swift",
        "system, history, query, response, rejected_response",
        "pairs",
        ("query", "response", "rejected_response", *SYSTEM, "history"),
        lambda row: has(row, "query", "response", "rejected_response"),
        foreign.read_swift_query,
    ),
    _renamed("stack-exchange-paired", "question", "response_j", "response_k"),
    _renamed("nemo", "prompt", "chosen_response", "rejected_response"),
    Exchange(
        "openai",
        "input, preferred_output, non_preferred_output",
        "pairs",
        ("input", "preferred_output", "non_preferred_output"),
        foreign.is_openai,
        foreign.read_openai,
        foreign.write_openai,
        others=False,
        inner=foreign.OPENAI_INPUT,
    ),
)
# Those that can be read, and those that can be written.
SOURCES = tuple(dict.fromkeys(layout.project for layout in LAYOUTS))
PROJECTS = tuple(dict.fromkeys(layout.project for layout in LAYOUTS if layout.write))


def matching(row: Row) -> list[Exchange]:
    """The layouts that a row's columns fit; TRL's is none where parts of the prompt stand beside.

    Args:
        row: any.
    """
    candidates = [layout for layout in LAYOUTS if layout.matches(row)]
    if any(name in row for name in (*SYSTEM, "input", "history")):
        return [layout for layout in candidates if layout.project != "trl"] or candidates
    return candidates


def target(project: str, of: Kind) -> Exchange | None:
    """The layout that a project's rows of a kind are written in; None where it has none."""
    layouts = (one for one in LAYOUTS if one.project == project and one.kind == of and one.write)
    return next(layouts, None)
