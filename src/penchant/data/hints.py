"""What to run on rows that cannot be read as they are: a command that works on the first of them.

Each suggestion is tried on the first rows before it is made.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from penchant.data.building import FORMS, build, named
from penchant.data.building.logs import THUMBS
from penchant.data.building.rules import Rules
from penchant.data.columns import renamed, written
from penchant.data.converting import projects
from penchant.data.converting.exchange import QUESTIONS
from penchant.data.converting.one_pass import Run
from penchant.data.converting.textform import TextForm
from penchant.data.opening import Part, Sources
from penchant.data.records import DataError
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Kind, Row, RowError

NUM_TRIED = 20
# What columns are called elsewhere, by the name used here; compared without case and separators.
NAMES = {
    "prompt": ("prompt", "request", "question", "instruction", "query", "input", "context",
               "problem", "task", "user"),
    "chosen": ("chosen", "chosenresponse", "chosenanswer", "choseninstruction", "responsej",
               "accepted", "preferred", "preferredresponse", "better", "betterresponse", "win",
               "positive", "good", "winning"),
    "rejected": ("rejected", "rejectedresponse", "rejectedanswer", "rejectedinstruction",
                 "responsek", "dispreferred", "nonpreferred", "worse", "worseresponse", "lose",
                 "negative", "bad", "losing"),
    "completion": ("completion", "response", "answer", "output", "generation", "reply"),
    "label": ("label", "rating", "feedback", "thumb", "thumbs", "vote", "liked", "score",
              "verdict", "preference", "winner", "choice", "better", "preferred",
              "betterresponseid"),
}  # fmt: skip
# The two ends of a pair of columns with answers, such as response1 and response2.
SIDES = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"), ("left", "right"))
TIES = {"0", "tie"}
WANTED = (
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt",),
)


def hint(sources: Sources, part: Part, kind: Kind[Any]) -> str | None:
    """Say how the rows of a part can be read.

    Args:
        sources: what the user named, for the command.
        part: of them; no row of it could be used.
        kind: what its rows should have been.

    Returns:
        What they are and what to run or to add, or None where nothing works.
    """
    items = [item for item in islice(part.rows(None), NUM_TRIED) if isinstance(item, tuple)]
    rows = [(where, row) for where, row in items if isinstance(row, Mapping)]
    if not rows:
        return None
    suggestions = (_conversions(sources, rows), _renamings(rows, kind), _builds(sources, rows),
                   _verdicts(sources, rows))  # fmt: skip
    return next((text for found in suggestions for text in found), None)


Placed = Sequence[tuple[str, Row]]


def _conversions(sources: Sources, rows: Placed) -> Iterator[str]:
    """Layouts of other projects that convert; several where they read the same rows differently."""
    layouts = projects.matching(rows[0][1])
    if all(layout.project == "trl" for layout in layouts):
        return
    working: dict[str, str] = {}
    for layout in layouts:
        origin = layout.project if len(layouts) > 1 else None
        run = Run(sources.name, "trl", origin, TextForm(None, None))
        try:
            done = list(run.rows(rows))
        except DataError:
            continue
        if done and not run.refused and layout.project != "trl":
            command = f"penchant data convert {sources.argument} --to trl"
            command += f" --from {origin}" if origin else ""
            command += f" --output {layout.kind}.jsonl"
            working.setdefault(command, layout.name)
    if working:
        names = " or ".join(dict.fromkeys(working.values()))
        lines = "\n".join(f"  {command}" for command in working)
        yield f"it is in the layout {names}, which training does not read; convert it:\n{lines}"


def _builds(sources: Sources, rows: Placed) -> Iterator[str]:
    """Judgements of which records can be made."""
    texts = [row for _, row in rows]
    if formats.recognise(texts[0]) or labels.recognise_label(texts[0]):
        return
    rules = Rules()
    try:
        row = named(texts[0], rules)
    except RowError:  # what is wrong with the row, reading it has said
        return
    matching = [form for form in FORMS.values() if form.matches(row, rules)]
    for form, turns in product(matching, ("all", "first")):
        if _built(texts, form=form.name, turns=turns):
            kind = "labels" if form is THUMBS else "pairs"
            options = f" --form {form.name}" if len(matching) > 1 else ""
            # Chats go on after the answers that differ: only the first answers make pairs.
            options += " --turns first" if turns == "first" else ""
            yield (
                f"it holds judgements, not {kind} yet: {form.name} ({form.columns}); build them:\n"
                f"  penchant data build {sources.argument}{options} --output {kind}.jsonl"
            )


def _built(rows: Sequence[Row], **how: Any) -> int:
    """How many records can be built of rows."""
    try:
        return build([dict(row) for row in rows], **how).written
    except DataError:
        return 0


def _renamings(rows: Placed, kind: Kind[Any]) -> Iterator[str]:
    """Columns that hold what is wanted under other names."""
    for names in WANTED:
        columns = _columns(rows, names)
        if columns and _reads(rows, columns, kind):
            yield f"name its columns: --columns {shlex.quote(written(columns))}"


def _columns(rows: Placed, wanted: Sequence[str]) -> dict[str, str] | None:
    """The rows' own names of the wanted columns where they differ; None where one is not there."""
    own = {re.sub(r"[\W_]", "", str(name).lower()): str(name) for name in rows[0][1]}
    columns: dict[str, str] = {}
    for name in wanted:
        if name in rows[0][1]:
            continue
        known = next((own[other] for other in NAMES[name] if other in own), None)
        if known is None:
            return None
        columns[name] = known
    return columns


def _reads(rows: Placed, columns: Mapping[str, str], kind: Kind[Any]) -> bool:
    """Whether some row can be read under other names."""
    for where, row in rows:
        try:
            if kind.convert(renamed(row, columns), None, where) is not None:
                return True
        except RowError:
            continue
    return False


def _verdicts(sources: Sources, rows: Placed) -> Iterator[str]:
    """Two answers with a verdict, whose columns and codes have to be named."""
    texts = [row for _, row in rows]
    # An instruction keeps its name: what stands in `input` follows it.
    asked = any(name in texts[0] for name in QUESTIONS)
    given = _columns(rows, ("label",) if asked else ("prompt", "label"))
    sides = _sides(list(map(str, texts[0])), texts[0])
    if given is None or sides is None:
        return
    label = given.get("label", "label")
    columns = {**given, "completion_a": sides[0], "completion_b": sides[1]}
    columns = {name: own for name, own in columns.items() if name != own}
    values = list(dict.fromkeys(str(row[label]) for row in texts if row.get(label) is not None))
    for codes in _codes(values, sides):
        if not _built(texts, form="label", columns=columns, codes=codes):
            continue
        yield (
            f"it holds two answers and a verdict ('{label}': {', '.join(values[:4])}); build "
            f"pairs{_meaning(codes, sides)}:\n"
            f"  penchant data build {sources.argument}"
            f"{f' --columns {shlex.quote(written(columns))}' if columns else ''}"
            f"{f' --codes {shlex.quote(written(codes))}' if codes else ''} --output pairs.jsonl"
        )


def _sides(names: Sequence[str], row: Row) -> tuple[str, str] | None:
    """Two columns of text whose names differ only in their ends."""
    for first, second in SIDES:
        for name in names:
            stem = name[: len(name) - len(first)]
            if not name.lower().endswith(first) or not stem or stem.startswith("model"):
                continue
            other = next((n for n in names if n.lower() == (stem + second).lower()), None)
            if other and isinstance(row[name], str | list) and isinstance(row[other], str | list):
                return name, other
    return None


def _codes(values: Sequence[str], sides: tuple[str, str]) -> Iterator[dict[str, str]]:
    """What verdicts may mean: nothing to say where they name a side themselves."""
    yield {}
    words = {value.strip() for value in values}
    for first, second in (*SIDES, sides):
        ties = words - {first, second}
        if words & {first, second} and (not ties or (ties <= TIES and second in words)):
            yield {first: "a", second: "b", **dict.fromkeys(ties, "tie")}


def _meaning(codes: Mapping[str, str], sides: tuple[str, str]) -> str:
    """What the codes assume, where the verdict is a number."""
    by_side = {meaning: code for code, meaning in codes.items()}
    if "a" not in by_side or by_side["a"] == sides[0]:
        return ""
    return (
        f", if {by_side['a']} means that {sides[0]} is better (exchange a and b in codes if it "
        "means the other)"
    )
