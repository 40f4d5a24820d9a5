"""What to run on two answers with a verdict, a vote or a score: the line that builds pairs of them.

Each line is tried on the first rows before it is named.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penchant.data.building import build
from penchant.data.building.rules import CODES
from penchant.data.building.votes import cast
from penchant.data.columns import renamed, written
from penchant.data.converting.exchange import QUESTIONS
from penchant.data.names import ENDS, own_name, own_names, sides, voters
from penchant.data.opening import Sources
from penchant.data.records import DataError
from penchant.data.rows.row import Row, first_role
from penchant.data.unjudged import Placed

TIES = {"0", "tie"}
# How much better the second of two answers is; negative where the first is.
GRADES = {str(grade): "a" if grade < 0 else "b" if grade else "tie" for grade in range(-3, 4)}


def built(rows: Sequence[Row], **how: Any) -> int:
    """How many records can be built of rows."""
    try:
        return build([dict(row) for row in rows], **how).written
    except DataError:
        return 0


def verdicts(sources: Sources, rows: Placed) -> Iterator[str]:
    """Two answers with a verdict, with votes or with scores, whose columns have to be named."""
    texts = [row for _, row in rows]
    both = sides(texts[0])
    if both is None:
        return
    # An instruction keeps its name: what stands in `input` follows it.
    asked = () if any(name in texts[0] for name in QUESTIONS) else ("prompt",)
    given = own_names(texts[0], asked)
    if given is None:
        yield from _whole_chats(sources, texts, both)
        return
    given |= {"completion_a": both[0], "completion_b": both[1]}
    yield from _votes(sources, texts, given)
    label = own_names(texts[0], ("label",))
    if label is None:
        return
    column = label.get("label", "label")
    cast_votes = [cast(row[column]) for row in texts if row.get(column) is not None]
    values = list(dict.fromkeys(map(str, cast_votes)))
    # Of rows that say who voted, those on one pair belong together.
    form = "votes" if texts[0].get("annotator") is not None else "label"
    how: dict[str, Any] = {"form": form, "columns": _differing({**given, **label})}
    said = f"it holds two answers and a verdict ('{column}': {', '.join(values[:4])})"
    for codes in _codes(values, both):
        if built(texts, **how, codes=codes):
            line = build_line(sources, **how, codes=codes)
            yield f"{said}; build pairs{_meaning(codes, both)}:\n  {line}"
    unknown = [value for value in values if value.strip().lower() not in CODES]
    known = "prefers one of them"
    if unknown:  # a guess might be the wrong way round
        how["codes"] = {unknown[0]: "SIDE"}
        known += " as far as values are known here; SIDE is a, b, tie or both_bad, for each of them"
    line = build_line(sources, **how)
    yield f"{said}, and no row of the first {len(rows)} {known}:\n  {line}"


def _whole_chats(sources: Sources, texts: Sequence[Row], both: tuple[str, str]) -> Iterator[str]:
    """Two whole chats with a verdict, under other names than Chatbot Arena's."""
    label = next((name for name in own_name(texts[0], "label")), None)
    if label is None or not all(first_role(texts[0][name]) for name in both):
        return
    names = dict(zip(("conversation_a", "conversation_b"), both, strict=True), winner=label)
    how = {"columns": _differing(names)}
    under = [renamed(row, how["columns"]) for row in texts]
    if built(under):
        yield (f"it holds two chats and a verdict; build pairs:\n  {build_line(sources, **how)}")


def _votes(sources: Sources, texts: Sequence[Row], given: dict[str, str]) -> Iterator[str]:
    """Two answers and the votes of several people: a list, or a column each."""
    listed = own_names(texts[0], ("votes",))
    found: list[dict[str, Any]] = [{"columns": _differing({**given, **(listed or {})})}]
    if columns := voters(texts[0]):
        found = [{"columns": _differing(given), "votes": columns}]
    elif listed is None:
        return
    for how in found:
        values = {str(vote) for row in texts for vote in _each_vote(row, columns, listed)}
        for codes in _codes(sorted(values), (given["completion_a"], given["completion_b"])):
            if built(texts, form="votes", codes=codes, **how):
                yield (
                    "it holds two answers and the votes of several people; build pairs"
                    f"{_meaning(codes, (given['completion_a'], given['completion_b']))}:\n"
                    f"  {build_line(sources, codes=codes, **how)}"
                )


def _each_vote(row: Row, columns: Sequence[str], listed: Mapping[str, str] | None) -> list[Any]:
    if columns:
        return [row[name] for name in columns if row.get(name) is not None]
    votes = row.get((listed or {}).get("votes", "votes"))
    return list(votes.values() if isinstance(votes, Mapping) else votes or ())  # type: ignore[call-overload]


def build_line(sources: Sources, **how: Any) -> str:
    """The command that builds pairs of the sources."""
    words = [f"penchant data build {sources.argument}"]
    if how.get("form") not in (None, "label"):
        words.append(f"--form {how['form']}")
    if votes := how.get("votes"):
        words.append(f"--votes {shlex.quote(','.join(votes))}")
    for name in ("columns", "codes"):
        if how.get(name):
            # A value that begins with a dash would be taken for an option after a blank.
            value = written(how[name])
            words.append(f"--{name}{'=' if value.startswith('-') else ' '}{shlex.quote(value)}")
    return " ".join([*words, "--output pairs.jsonl"])


def _differing(columns: Mapping[str, str]) -> dict[str, str]:
    return {name: own for name, own in columns.items() if name != own}


def _codes(values: Sequence[str], both: tuple[str, str]) -> Iterator[dict[str, str]]:
    """What verdicts may mean: nothing to say where they name a side themselves."""
    yield {}
    words = {value.strip().removesuffix(".0") for value in values}
    if words & {"0.5"} and words <= {"0", "0.5", "1"}:  # the share that the first one won
        yield {"1": "a", "0": "b", "0.5": "tie"}
    if words <= {*GRADES} and any(word.startswith("-") for word in words):
        yield dict(GRADES)
    # Verdicts that count as the columns do come first: 1 is the second of answer_0 and answer_1.
    for first, second in ((both[0][-1:], both[1][-1:]), *ENDS, both):
        ties = words - {first, second}
        if words & {first, second} and (not ties or (ties <= TIES and second in words)):
            yield {first: "a", second: "b", **dict.fromkeys(ties, "tie")}


def _meaning(codes: Mapping[str, str], both: tuple[str, str]) -> str:
    """What the codes assume, where the verdict is a number."""
    by_side = {meaning: code for code, meaning in codes.items()}
    if "a" not in by_side or by_side["a"] == both[0]:
        return ""
    return (
        f", if {by_side['a']} means that {both[0]} is better (exchange a and b in codes if it "
        "means the other)"
    )
