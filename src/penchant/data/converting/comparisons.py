"""Two answers to a prompt with a verdict between them, as rows that `data build` knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from penchant.data import names
from penchant.data.columns import pick
from penchant.data.converting.exchange import NewRow, unpacked, user
from penchant.data.rows.chats import read_messages, split_prompt
from penchant.data.rows.row import Row, RowError, is_given, shown

Read = Callable[[Row], NewRow]
Verdict = Callable[[Row], NewRow]


def two_answers(a: str, b: str, verdict: Verdict, prompt: str | None = None) -> Read:
    """Two completions and a verdict; the prompt is named where no usual name has it."""

    def read(row: Row) -> NewRow:
        named = {"prompt": pick(row, prompt)} if prompt else {}
        return {**named, "completion_a": pick(row, a), "completion_b": pick(row, b), **verdict(row)}

    return read


def coded(column: str, a: str, b: str, tie: str = "") -> Verdict:
    """A verdict by name or number, such as `coded("label", "0", "1")`."""
    codes = {a: "a", b: "b", **({tie: "tie"} if tie else {})}

    def verdict(row: Row) -> NewRow:
        value = row[column]
        word = "" if isinstance(value, bool) else str(value).strip().removesuffix(".0")
        return {"label": codes.get(word, _model(row, value))}

    return verdict


def _model(row: Row, value: object) -> object:
    """The side of the model that a verdict names; the verdict itself where it names none."""
    models = {row.get(f"model_{side}"): side for side in ("a", "b")}
    return models.get(value, value) if isinstance(value, str) and len(models) == 2 else value


def strength(column: str) -> Verdict:
    """How much better the second is, negative where the first is: -3 to 3."""

    def verdict(row: Row) -> NewRow:
        by = number(row, column)
        return {"label": "a" if by < 0 else "b" if by else "tie", "strength": abs(by) or None}

    return verdict


def between(column: str) -> Verdict:
    """From 1, where the first is better, to 2; 1.5 (or 0) is a tie: AlpacaEval's."""

    def verdict(row: Row) -> NewRow:
        value = number(row, column)
        if value in (0, 1.5):
            return {"label": "tie"}
        return {"label": "a" if value < 1.5 else "b"}

    return verdict


def one_hot(a: str, b: str, tie: str) -> Verdict:
    """A column for each outcome, one of them 1."""

    def verdict(row: Row) -> NewRow:
        side = {a: "a", b: "b", tie: "tie"}
        held = [meant for name, meant in side.items() if is_given(row, name) and _holds(row, name)]
        if len(held) != 1:
            raise RowError("unknown label", f"one of {', '.join(side)} must be 1, got {len(held)}")
        return {"label": held[0]}

    return verdict


def _holds(row: Row, column: str) -> bool:
    value = row[column]
    return value if isinstance(value, bool) else bool(number(row, column))


def won(row: Row) -> NewRow:
    """Two answers and a column for each outcome, by whatever names."""
    both, outcomes = names.sides(row), names.outcomes(row)
    assert both is not None and outcomes is not None
    return two_answers(*both, one_hot(*outcomes))(row)


def is_won(row: Row) -> bool:
    """Whether two answers stand beside a column for each outcome, one of them 1."""
    return names.sides(row) is not None and names.outcomes(row) is not None


def columns_of_votes(*columns: str) -> Verdict:
    """One vote a column: 1, 2, or 0 for a tie (PandaLM)."""
    codes = {"1": "a", "2": "b", "0": "tie"}

    def verdict(row: Row) -> NewRow:
        return {"votes": {name: codes.get(str(row[name]), row[name]) for name in columns}}

    return verdict


def conversations(row: Row) -> NewRow:
    """Two whole chats and the verdict between them, of a judge where one is named."""
    chats = [read_messages(row[name], name) for name in ("conversation_a", "conversation_b")]
    label = _model(row, row["winner"])
    if chats[0] == chats[1]:
        prompt, *answers = chats[0][:-1], chats[0][-1:], chats[1][-1:]
    else:
        prompt, *answers = split_prompt(*chats)
    judge = row.get("judge")
    named = {"annotator": " ".join(map(str, judge)) if isinstance(judge, list) else judge}
    texts = dict(zip(("completion_a", "completion_b"), map(_plain, answers), strict=True))
    return {"prompt": _plain(prompt), **texts, "label": label, **(named if judge else {})}


def scored_chats(row: Row) -> NewRow:
    """Two whole chats with a rating each (Unified-Feedback)."""
    gap = number(row, "conv_A_rating") - number(row, "conv_B_rating")
    chats = {"conversation_a": row["conv_A"], "conversation_b": row["conv_B"]}
    made = conversations({**chats, "winner": "a" if gap > 0 else "b" if gap else "tie"})
    return {**made, "strength": abs(gap) or None}


def _plain(chat: Sequence[Any]) -> list[NewRow]:
    return [dict(one) for one in chat]


def turns(verdict: Verdict) -> Read:
    """Questions, and each side's answers to them, as lists (or lists in JSON)."""

    def read(row: Row) -> NewRow:
        several = [unpacked(row[name]) for name in ("prompt", "response_a", "response_b")]
        if not all(isinstance(value, list) for value in several):
            return two_answers("response_a", "response_b", verdict, "prompt")(row)
        if len({len(value) for value in several}) > 1:
            raise RowError("uneven numbers", "prompt and responses must have equally many turns")
        chats = [
            [turn for q, a in zip(several[0], side, strict=True) for turn in (user(q), reply(a))]
            for side in several[1:]
        ]
        return conversations(
            {
                "conversation_a": chats[0],
                "conversation_b": chats[1],
                "winner": verdict(row)["label"],
            }
        )

    return read


def reply(text: object) -> NewRow:
    """A message of the assistant's."""
    return {"role": "assistant", "content": text or ""}


def number(row: Row, column: str) -> float:
    """A finite number in a column.

    Raises:
        RowError: it holds none.
    """
    value = row[column]
    try:
        found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise RowError("unknown label", f"'{column}' must be a number, got {shown(value)}")
    return found
