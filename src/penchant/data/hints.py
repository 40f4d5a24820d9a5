"""What to run on rows that cannot be read as they are: a command that works on the first of them.

Each suggestion is tried on the first rows before it is made.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product
from typing import Any

from penchant.data.building import FORMS, build, named
from penchant.data.building.ranked import RANKED
from penchant.data.building.rated import RATED, SEVERAL_ASPECTS
from penchant.data.building.rules import Rules
from penchant.data.columns import renamed, written
from penchant.data.converting import projects
from penchant.data.converting.judgements import is_best_of
from penchant.data.converting.one_pass import Run
from penchant.data.converting.textform import TextForm
from penchant.data.names import own_names, place_of_best
from penchant.data.opening import Part, Sources
from penchant.data.records import DataError
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import MEDIA, TEMPLATE_COLUMNS, Kind, Row, RowError
from penchant.data.unjudged import Placed, uncompared, unjudged
from penchant.data.verdict_hints import build_line, built, verdicts

NUM_TRIED = 20
# Gives a column another name, so that it is read no more.
UNUSED = {"unused_prompt": "prompt"}
BESIDE_PROMPT = ("context", "documents", "system", *MEDIA, *TEMPLATE_COLUMNS)
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
    ("ranking", ("prompt", "completion", "rank")),
    ("ratings", ("prompt", "completions")),
    ("ranking", ("prompt", "completions")),
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
                   _renamed_conversions(sources, rows), verdicts(sources, rows),
                   _several(sources, rows), _otherwise(rows, kind),
                   uncompared(sources, rows, kind), unjudged(sources, rows, kind))  # fmt: skip
    return next((text for found in suggestions for text in found), None)


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
        # The place of the best may be one that no row has: only all of them show that.
        row, *_ = [named(text, rules) for text in (texts if is_best_of(texts[0]) else texts[:1])]
    except DataError as error:
        yield str(error).replace(" FILE ", f" {sources.argument} ")
        return
    except RowError:  # what is wrong with the row, reading it has said
        return
    matching = [form for form in FORMS.values() if form.matches(row, rules)]
    for form, turns in product(matching, ("all", "first")):
        if built(texts, form=form.name, turns=turns):
            kind = form.makes
            options = f" --form {form.name}" if len(matching) > 1 else ""
            # Chats go on after the answers that differ: only the first answers make pairs.
            options += " --turns first" if turns == "first" else ""
            yield (
                f"it holds judgements, not {kind} yet: {form.name} ({form.columns}); build them"
                f"{_counted_from(texts)}:\n"
                f"  penchant data build {sources.argument}{options} --output {kind}.jsonl"
            )


def _counted_from(rows: Sequence[Row]) -> str:
    """What is assumed of the place of the best answer, where no row shows that it counts from 0."""
    index = place_of_best(rows[0]) if is_best_of(rows[0]) else ""
    if not index or any(row.get(index) == 0 for row in rows):
        return ""
    return f", if '{index}' counts from 0, so that 1 is the second answer"


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


def _several(sources: Sources, rows: Placed) -> Iterator[str]:
    """Several answers to a prompt with scores or ranks, in lists or a row each."""
    texts = [row for _, row in rows]
    for form, needed in SEVERAL:
        columns = own_names(texts[0], needed)
        # Steps of one answer that are right or wrong (TRL's `labels`) are no answers to choose of.
        if columns and _are_steps(texts[0], columns):
            continue
        if columns and built(texts, form=form, columns=columns):
            line = build_line(sources, form=form, columns=columns)
            yield f"it holds several answers to a prompt, {form}; build pairs:\n  {line}"
        elif columns and form == RANKED.name and _from_zero(texts, columns):
            own = _rank_column(texts[0], columns)
            more = f"(.{own} | arrays) |= map(. + 1) | (.{own} | numbers) |= . + 1"
            yield (
                f"it holds several answers to a prompt whose '{own}' counts from 0, where 1 is the "
                "best here; add 1, and read what that writes:\n"
                f"  jq -c {shlex.quote(more)} {sources.argument} > ranked.jsonl"
            )
        elif columns and form == RATED.name and (why := _aspects(texts, columns)):
            line = build_line(sources, form=form, columns={**columns, "ratings": "PATH"})
            yield f"it holds several answers to a prompt; {why}, here as PATH:\n  {line}"


def _rank_column(row: Row, columns: Mapping[str, str]) -> str:
    """The row's own column of ranks; empty where it has none."""
    names = [columns.get(name, name) for name in ("ranks", "rank")]
    return next((name for name in names if name in row), "")


def _from_zero(rows: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether ranks are whole numbers of which the least is 0."""
    values = [row.get(_rank_column(rows[0], columns)) for row in rows]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return all(isinstance(one, int) for one in flat) and min(map(int, flat), default=1) == 0  # type: ignore[arg-type]


def _aspects(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """What is said where each answer has scores of several aspects; empty where none has."""
    try:
        build([dict(row) for row in rows], form=RATED.name, columns=columns)
    except DataError as error:
        said = re.search(rf"{SEVERAL_ASPECTS}\n +\S+: (.*)", str(error))
        return said[1] if said else ""
    return ""


def _are_steps(row: Row, columns: Mapping[str, str]) -> bool:
    flags = row.get("labels")
    listed = isinstance(flags, list) and any(isinstance(one, bool) for one in flags)
    return listed and columns.get("ratings") == "labels"
