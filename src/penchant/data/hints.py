"""What to run on rows that cannot be read as they are: a command that works on the first of them.

Each suggestion is tried on the first rows before it is made.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from penchant.data.names import ENDS, own_names, sides, voters
from penchant.data.opening import Part, Sources
from penchant.data.records import DataError
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import MEDIA, TEMPLATE_COLUMNS, Kind, Row, RowError

NUM_TRIED = 20
# Gives a column another name, so that it is read no more.
UNUSED = {"unused_prompt": "prompt"}
BESIDE_PROMPT = ("context", "documents", "system", *MEDIA, *TEMPLATE_COLUMNS)
TIES = {"0", "tie"}
# How much better the second of two answers is; negative where the first is.
GRADES = {str(grade): "a" if grade < 0 else "b" if grade else "tie" for grade in range(-3, 4)}
WANTED = (
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("messages", "label"),
    ("prompt",),
)
# Forms of `data build` and the columns that each needs.
SEVERAL = (
    ("ratings", ("prompt", "completions", "ratings")),
    ("ranking", ("prompt", "completions", "ranks")),
    ("ratings", ("prompt", "completion", "rating")),
    ("ratings", ("prompt", "completions")),
    ("ranking", ("prompt", "chosen", "rejected")),
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
                   _renamed_conversions(sources, rows), _verdicts(sources, rows),
                   _several(sources, rows), _otherwise(rows, kind))  # fmt: skip
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


def _renamed_conversions(sources: Sources, rows: Placed) -> Iterator[str]:
    """Layouts of other projects, once the two answers have the names that they have there."""
    columns = own_names(rows[0][1], ("chosen", "rejected"))
    if columns and not sources.columns:
        under = [(where, renamed(row, columns)) for where, row in rows]
        yield from _conversions(replace(sources, columns=columns), under)


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
        columns = own_names(rows[0][1], names)
        if columns and _reads(rows, columns, kind):
            yield f"name its columns: --columns {shlex.quote(written(columns))}"
    for name in BESIDE_PROMPT:
        unused = {f"unused_{name}": name}
        if rows[0][1].get(name) and _reads(rows, unused, kind):
            yield (
                f"its '{name}' is not read, of which the prompt may be a part; where the texts do "
                f"without it, leave it out: --columns {written(unused)}"
            )
    if _reads(rows, UNUSED, kind):
        yield f"its prompt is none of the messages; leave it out: --columns {written(UNUSED)}"


def _otherwise(rows: Placed, kind: Kind[Any]) -> Iterator[str]:
    """Labels of single completions under other names where pairs are wanted, and the reverse."""
    for names in WANTED:
        columns = own_names(rows[0][1], names)
        if not columns:
            continue
        named = f"--columns {shlex.quote(written(columns))}"
        if kind is not labels.LABELS and "label" in names and _reads(rows, columns, labels.LABELS):
            yield (
                "it holds labels of single completions under other names, not pairs; train on "
                f"them with a method for labels: kto {named}"
            )
        if kind is labels.LABELS and "chosen" in names and _reads(rows, columns, labels.EITHER):
            yield (
                "it holds pairs under other names, not labels; train on them with a method for "
                f"pairs: dpo {named}; or read each as two labels: --unpair {named}"
            )


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
    """Two answers with a verdict, with votes or with scores, whose columns have to be named."""
    texts = [row for _, row in rows]
    both = sides(texts[0])
    if both is None:
        return
    # An instruction keeps its name: what stands in `input` follows it.
    asked = () if any(name in texts[0] for name in QUESTIONS) else ("prompt",)
    given = own_names(texts[0], asked)
    if given is None:
        return
    given |= {"completion_a": both[0], "completion_b": both[1]}
    yield from _votes(sources, texts, given)
    label = own_names(texts[0], ("label",))
    if label is None:
        return
    column = label.get("label", "label")
    values = list(dict.fromkeys(str(row[column]) for row in texts if row.get(column) is not None))
    for codes in _codes(values, both):
        how = {"form": "label", "columns": _differing({**given, **label}), "codes": codes}
        if _built(texts, **how):
            yield (
                f"it holds two answers and a verdict ('{column}': {', '.join(values[:4])}); build "
                f"pairs{_meaning(codes, both)}:\n  {_build_line(sources, **how)}"
            )


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
            if _built(texts, form="votes", codes=codes, **how):
                yield (
                    "it holds two answers and the votes of several people; build pairs"
                    f"{_meaning(codes, (given['completion_a'], given['completion_b']))}:\n"
                    f"  {_build_line(sources, codes=codes, **how)}"
                )


def _each_vote(row: Row, columns: Sequence[str], listed: Mapping[str, str] | None) -> list[Any]:
    if columns:
        return [row[name] for name in columns if row.get(name) is not None]
    votes = row.get((listed or {}).get("votes", "votes"))
    return list(votes.values() if isinstance(votes, Mapping) else votes or ())  # type: ignore[call-overload]


def _several(sources: Sources, rows: Placed) -> Iterator[str]:
    """Several answers to a prompt with scores or ranks, in lists or a row each."""
    texts = [row for _, row in rows]
    for form, needed in SEVERAL:
        columns = own_names(texts[0], needed)
        # Steps of one answer that are right or wrong (TRL's `labels`) are no answers to choose of.
        if columns and _are_steps(texts[0], columns):
            continue
        if columns and _built(texts, form=form, columns=columns):
            line = _build_line(sources, form=form, columns=columns)
            yield f"it holds several answers to a prompt, {form}; build pairs:\n  {line}"


def _are_steps(row: Row, columns: Mapping[str, str]) -> bool:
    flags = row.get("labels")
    listed = isinstance(flags, list) and any(isinstance(one, bool) for one in flags)
    return listed and columns.get("ratings") == "labels"


def _build_line(sources: Sources, **how: Any) -> str:
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
