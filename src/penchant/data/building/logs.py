"""Labels from thumbs up and down, of rows or of messages, and pairs from regenerated answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from penchant.data.building.rules import Counts, Form, Placed, Rows, Rules, answer, pair
from penchant.data.converting.project_rows import label_texts
from penchant.data.records import DataError, Message
from penchant.data.rows import labels
from penchant.data.rows.chats import read_messages
from penchant.data.rows.messages import plain
from penchant.data.rows.refusing import lacks
from penchant.data.rows.row import Row, RowError, is_given, kind, shown

# Where a message lists the answers that it replaced.
REPLACED = ("alternatives", "regenerated")
# What a message may call the thumb that its answer got, also within an object of such a name.
JUDGED = ("label", "feedback", "thumbs_up", "thumbs", "rating", "vote")


def _is_thumbs(row: Row, rules: Rules) -> bool:
    sides = is_given(row, "completion_a") or is_given(row, "completions")
    return labels.recognise_label(row) is not None and not sides


def _from_thumbs(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, row = unit[0]
    if is_given(row, "rating") and not any(name in row for name in labels.ALIASES["label"]):
        # Read on, a rating of 1 in other rows would be a thumb up.
        raise DataError(
            f"the rating of {where} is {shown(row['rating'])}, where rows before it have a thumb "
            "up or down; if all of them are ratings, build with form ratings"
        )
    for name in labels.ALIASES["completion"]:
        if is_given(row, name):
            answer(row[name], rules.name(name))
    yield {**label_texts(labels.to_label(row, None, where)), "rule": "thumbs"}


def _is_feedback(row: Row, rules: Rules) -> bool:
    turns = row.get("messages")
    if any(is_given(row, name) for name in labels.ALIASES["label"]):
        return False
    return isinstance(turns, list | tuple) and any(_judged(turn) is not None for turn in turns)


def _judged(message: object) -> object:
    """What was said of an answer in its message; None where nothing was."""
    if not _is_answer(message):
        return None
    assert isinstance(message, Mapping)
    verdict = next((message[name] for name in JUDGED if message.get(name) is not None), None)
    if isinstance(verdict, Mapping):
        return next((verdict[name] for name in JUDGED if verdict.get(name) is not None), None)
    return verdict


def _from_feedback(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    """A label of each answer that was judged, after what was said before it."""
    where, row = unit[0]
    turns = row["messages"]
    assert isinstance(turns, list | tuple)
    for number, message in enumerate(turns):
        verdict = _judged(message)
        if verdict is not None:
            one = {"messages": turns[: number + 1], "label": verdict}
            made = label_texts(labels.to_label(one, None, where))
            yield {**made, "turn": number + 1, "rule": "feedback"}


def _is_chat(row: Row, rules: Rules) -> bool:
    return (
        kind(row.get("messages")) == "messages"
        and not _is_feedback(row, rules)
        and not any(is_given(row, name) for name in labels.ALIASES["label"])
    )


def _from_chat(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    """The answer that stayed is preferred to each that it replaced, after what was said before.

    Answers were replaced where a message lists them (`alternatives` or `regenerated`), and where
    answers follow each other with nothing said between: the last one stayed.
    """
    where, row = unit[0]
    turns = row.get("messages")
    if not isinstance(turns, list | tuple):
        raise lacks(labels.WHOLE_CHAT, row, [rules.name("messages")])
    history: tuple[Message, ...] = ()
    num_replies = 0
    for is_answer, run in groupby(turns, key=_is_answer):
        messages = list(run)
        if not is_answer:
            history += read_messages(messages, "messages")
            continue
        read = read_messages(messages, "messages")
        kept = read[-1:]
        replaced: list[object] = [plain((one,)) for one in read[:-1]]
        replaced += [one for message in messages for one in _replaced(message)]
        for other in replaced:
            num_replies += 1
            if _says(other) == kept[0]["content"]:
                counts["pairs left out: regenerated word for word"] += 1
                continue
            made = pair(plain(history), plain(kept), _as_turn(other), where)
            yield {**made, "turn": len(history) + 1, "rule": "regenerated"}
        history += kept
    counts["chats without a regenerated answer"] += not num_replies


def _is_answer(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


def _replaced(message: object) -> list[object]:
    """The answers that a message says it replaced."""
    assert isinstance(message, Mapping)
    replaced: list[object] = []
    for name in REPLACED:
        listed = message.get(name)
        if listed is None:
            continue
        if not isinstance(listed, list | tuple):
            raise RowError("wrong type", f"'{name}' of a message must be a list of answers")
        replaced += [answer(_says(one), name) for one in listed]
    return replaced


def _says(one: object) -> object:
    """The text of an answer: a string, a message, or a list of one message."""
    if isinstance(one, list | tuple) and len(one) == 1:
        one = one[0]
    return one.get("content") if isinstance(one, Mapping) else one


def _as_turn(one: object) -> object:
    return [{"role": "assistant", "content": one}] if isinstance(one, str) else one


THUMBS = Form(
    "thumbs",
    "prompt, completion, label (or messages, label)",
    _is_thumbs,
    _from_thumbs,
    ("messages", *labels.ALIASES["completion"], *labels.ALIASES["label"]),
    makes="labels",
)
FEEDBACK = Form(
    "feedback",
    "messages, of which some have feedback, label or thumbs_up",
    _is_feedback,
    _from_feedback,
    ("messages",),
    makes="labels",
)
CHATS = Form(
    "chats",
    "messages, with replaced answers as alternatives",
    _is_chat,
    _from_chat,
    ("messages",),
)
