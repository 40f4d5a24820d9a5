"""What to do with rows in which nobody preferred anything: prompts, with or without an answer."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penchant.data.columns import renamed, written
from penchant.data.names import own_name, sides, voters
from penchant.data.rows.messages import ANSWERING
from penchant.data.rows.pairs import lists_texts
from penchant.data.rows.row import Kind, Row, RowError, kind

if TYPE_CHECKING:
    from penchant.data.opening import Sources

Placed = Sequence[tuple[str, Row]]

# What comparing by hand reads, in `penchant.label.reading`.
COMPARED = "pair of completions"
JUDGED = ("chosen", "rejected", "completions", "label", "votes", "rating", "ratings", "ranks")
# Under which of its own names a row may give its prompt.
READINGS: tuple[tuple[str, ...], ...] = ((), ("prompt",), ("messages",))


def unjudged(sources: Sources, rows: Placed, wanted: Kind[Any]) -> Iterator[str]:
    """Say that rows hold no preference, and what trains on them.

    Args:
        sources: what the user named, for the commands.
        rows: with their places, at least one.
        wanted: what they should have been.
    """
    if wanted.name == "prompt" or _says_more(rows[0][1]):
        return
    columns = next((c for c in _columns(rows[0][1]) if _gives_prompts(rows, c)), None)
    if columns is None:
        return
    answered = _answered(renamed(rows[0][1], columns))
    held = "answers that nobody has judged" if answered else "prompts without answers"
    model = shlex.quote(sources.model or "MODEL")
    data = sources.argument + (f" --columns {shlex.quote(written(columns))}" if columns else "")
    file, _, options = data.partition(" ")
    yield (
        f"it holds {held}: nothing says which answer is the better one, or whether one is good; "
        "its prompts serve where a REWARD judges (a reward model, file.py:function, or a ready one "
        "such as gsm8k): they make pairs of sampled answers, or train a method that samples\n"
        f"  penchant data build {data} --sample {model} --reward REWARD --output pairs.jsonl\n"
        f"  penchant train grpo --model {model} --data {file} {options}{' ' * bool(options)}"
        "--reward REWARD --output RUN"
    )


def uncompared(sources: Sources, rows: Placed, wanted: Kind[Any]) -> Iterator[str]:
    """Say that rows hold two answers and nothing that says which is better, and what compares them.

    Args:
        sources, rows, wanted: as for `unjudged`.
    """
    row = rows[0][1]
    both, asked = sides(row), own_name(row, "prompt")
    if both is None or not asked or _judged(row):
        return
    names = {"prompt": asked[0], "completion_a": both[0], "completion_b": both[1]}
    columns = {name: own for name, own in names.items() if name != own}
    option = f" --columns {shlex.quote(written(columns))}" if columns else ""
    if wanted.name == COMPARED:
        yield f"name its columns:{option}"
        return
    yield (
        "it holds two answers to a prompt, and nothing that says which one is better; compare them "
        "by hand, or let a model judge with --judge MODEL:\n"
        f"  penchant label {sources.argument}{option}"
    )


def _says_more(row: Row) -> bool:
    """Whether a row has columns that may well be a judgement, which another message must name."""
    listed = (one for name, one in row.items() if name != "turns")
    return _judged(row) or sides(row) is not None or any(map(lists_texts, listed))


def _judged(row: Row) -> bool:
    own = (name for kind in JUDGED for name in own_name(row, kind))
    return any(row[name] is not None for name in own) or bool(voters(row))


def _columns(row: Row) -> Iterator[dict[str, str]]:
    """Names under which the prompt may be read: as it is, or one of the row's own names."""
    for names in READINGS:
        if not names:
            yield {}
        for name in names:
            yield from ({name: own} for own in own_name(row, name) if own != name)


def _gives_prompts(rows: Placed, columns: Mapping[str, str]) -> bool:
    """Whether every row is read as a prompt."""
    from penchant.data.prompts import PROMPTS

    layout = None
    for where, row in rows:
        given = renamed(row, columns)
        layout = layout or PROMPTS.recognise(given)
        try:
            PROMPTS.convert(given, layout, where)
        except RowError:
            return False
    return True


def _answered(row: Row) -> bool:
    """Whether an answer stands beside the prompt, or at the end of its chat."""
    chat: Any = row.get("messages")
    if kind(chat) == "messages" and isinstance(chat, list | tuple) and chat:
        return chat[-1].get("role", chat[-1].get("from")) in ANSWERING
    return any(isinstance(row[name], str | list) for name in own_name(row, "completion"))
