"""Build preference data from judgements: labels, votes, ratings, rankings, thumbs, chat logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penchant.data.building.logs import CHATS, FEEDBACK, THUMBS
from penchant.data.building.ranked import RANKED
from penchant.data.building.rated import RATED
from penchant.data.building.rules import Choice, Counts, Form, Placed, Rules
from penchant.data.building.trees import TREES
from penchant.data.building.votes import LABELS, SIDES, VOTES
from penchant.data.converting.exchange import QUESTIONS, SYSTEM, asked, user, with_system
from penchant.data.converting.judgements import LAYOUTS
from penchant.data.converting.textform import TextForm, text_form
from penchant.data.grouping import grouped
from penchant.data.lines import Item
from penchant.data.names import listed_objects
from penchant.data.opening import Sources
from penchant.data.records import DataError, Refusal, counted
from penchant.data.rows.chats import read_messages
from penchant.data.rows.margins import NUMBER_FIELDS
from penchant.data.rows.messages import with_template_columns
from penchant.data.rows.row import TEMPLATE_COLUMNS, RowError, kind, refuse_media, shown
from penchant.data.rows.usable import require_none, usable
from penchant.data.tally import Tally
from penchant.data.writing import new_file, require_new

if TYPE_CHECKING:
    from penchant.data.opening import Source

FORMS = {form.name: form for form in (LABELS, VOTES, RATED, RANKED, TREES, THUMBS, FEEDBACK, CHATS)}

# Columns that become part of the prompt.
PARTS = (*SYSTEM, "history", "input", *TEMPLATE_COLUMNS)
# Columns that forms and other projects' layouts call alike.
SHARED = {*PARTS, *QUESTIONS, "ratings"}
# Columns that training reads: what a record does not set itself, it does not have.
READ = {*PARTS, *QUESTIONS, *NUMBER_FIELDS, "chosen", "rejected", "completion", "label", "votes"}


@dataclass(frozen=True)
class Built:
    """What `build` made.

    Args:
        form: what the source was read as.
        units: rows, or groups of rows that belong together, that were looked at.
        written: how many records.
        left_out: what was counted on the way, by what it was.
        refused: rows that could not be used.
        source: what was read, as the user named it.
        output: the file that was written; None where the rows are in `rows`.
        rows: the records, where no output was named.
    """

    form: str
    units: int
    written: int
    left_out: Mapping[str, int]
    refused: Tally
    source: str
    output: Path | None
    rows: Sequence[dict[str, object]]

    def summary(self) -> str:
        """Say in a few lines what was read, made and left out, and why."""
        noun = FORMS[self.form].makes.removesuffix("s")
        to = f" to {self.output}" if self.output else ""
        lines = [
            f"read {counted(self.units, 'judgement')} from {self.source}, form: {self.form}",
            f"made {counted(self.written, noun)}{to}",
            *(f"  {number} {what}" for what, number in self.left_out.items()),
        ]
        if self.refused:
            lines += [f"{counted(len(self.refused), 'row')} refused", self.refused.describe()]
        return "\n".join(lines)


def build(
    source: Source,
    output: str | Path | None = None,
    *,
    form: str | None = None,
    agreement: Literal["majority", "unanimity"] | float = "majority",
    pairs: Choice = "best_worst",
    min_gap: float = 0.0,
    rating_range: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
    votes: Sequence[str] = (),
    codes: Mapping[str, str] | None = None,
    seed: int = 0,
    turns: Literal["all", "first"] = "all",
    text: Literal["chat", "strings"] | None = None,
    template: str | Path | None = None,
    split: str = "train",
    strict: bool = False,
) -> Built:
    """Build pairs or labels from judgements.

    Args:
        source: anything that `read_pairs` takes, with rows in one of `FORMS`.
        output: a new `.jsonl`, `.jsonl.gz` or `.parquet` file; None returns the rows.
        form: a name in `FORMS`; needed where the columns fit several.
        agreement: what votes must reach: the most (majority), all (unanimity), or a share.
        pairs: of rated or ranked completions: best against worst, best against a random other,
            or all.
        min_gap: the least difference of ratings or ranks in a pair.
        rating_range: ratings outside are left out.
        votes: columns that hold one vote each.
        codes: what votes mean (a, b, tie or both_bad), such as `{"1": "a", "2": "b"}`.
        seed: of the random choice.
        turns: `first` ends both of two chats with the first answers in which they differ; with
            `all`, chats that go on after those are refused.
        text, template: as for `convert`.
        split, columns: as for `read_pairs`.
        strict: raise when any row is refused, instead of counting it.

    Returns:
        What was made and left out. Each row names its `source`, its `rows` there and the `rule`,
        and keeps the other columns in which its rows agree.

    Raises:
        DataError: the form cannot be told, nothing can be made, the output exists or cannot be
            written, a setting is impossible, or `strict` and a row is refused.
    """
    least = {"majority": None, "unanimity": 1.0}.get(str(agreement), agreement)
    if isinstance(least, str):
        raise DataError(f"agreement must be majority, unanimity or a share, got {agreement!r}")
    rules = Rules(
        least, pairs, min_gap, rating_range, codes or {}, votes, columns or {}, seed, turns
    )  # fmt: skip
    target = None if output is None else Path(output)
    if target:
        require_new(target)
    sources = Sources.of(source, split, columns)
    run = _Run(sources.name, rules, form, text_form(text, template))
    rows: list[dict[str, object]] = []
    with new_file(target) if target else nullcontext(_Kept(rows)) as writer:
        for row in run.records(sources.items()):
            writer.write(row)
        run.check(strict)
    written, kept = run.written, {what: n for what, n in run.counts.items() if n}
    return Built(run.form.name, run.units, written, kept, run.refused, sources.name, target, rows)


class _Kept:
    """Keeps rows in memory."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.rows = rows

    def write(self, row: Mapping[str, object]) -> None:
        self.rows.append(dict(row))


class _Run:
    """One pass over a source: tells its form, groups its rows, makes the records, counts."""

    def __init__(self, name: str, rules: Rules, form: str | None, change: TextForm) -> None:
        if form is not None and form not in FORMS:
            raise DataError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.name, self.rules, self.change = name, rules, change
        self._form = FORMS[form] if form else None
        self.counts: Counts = Counter()
        self.refused = Tally()
        self.units = self.written = 0

    @property
    def form(self) -> Form:
        assert self._form, "no record was read"
        return self._form

    def records(self, items: Iterable[Item]) -> Iterator[dict[str, object]]:
        """The records of all rows, with their provenance."""
        placed = self._placed(iter(items))
        first = next(placed, None)
        if first is None:
            return
        self._form = self._form or _tell(first, self.rules, self.name)
        for unit in self._units(chain([first], placed)):
            self.units += 1
            try:
                for record in self.form.make(unit, self.rules, self.counts):
                    record = self.change.row(record, unit[0].where, self.counts)
                    self.written += 1
                    yield self._with_others({**record, **_provenance(unit)}, unit)
            except RowError as error:
                self.refused.add(Refusal(unit[0].where, error.reason, error.detail))

    def _with_others(self, record: dict[str, object], unit: Sequence[Placed]) -> dict[str, object]:
        """A record with the columns that its form does not use, where all its rows agree."""
        first, *rest = (one.row for one in unit)
        taken = {*record, *self.form.used, *self.rules.votes, *READ}
        others = {
            name: value
            for name, value in first.items()
            if name not in taken and all(row.get(name) == value for row in rest)
        }
        return {**record, **others}

    def check(self, strict: bool) -> None:
        """Refuse a result without a record, or when strict with a refusal."""
        if strict:
            require_none(self.refused, self.name)
        if not self.written:
            left = "".join(f"\n  {n} {what}" for what, n in self.counts.items() if n)
            why = f"{left}\n{self.refused.describe()}".rstrip()
            rows = counted(self.units, "judgement")
            raise DataError(f"nothing can be made of {self.name}: {rows} read{why}")

    def _placed(self, items: Iterator[Item]) -> Iterator[Placed]:
        return usable(items, self.refused, lambda where, row: Placed(where, named(row, self.rules)))

    def _units(self, placed: Iterator[Placed]) -> Iterator[list[Placed]]:
        if self.form.key is None:
            return ([one] for one in placed)
        groups = grouped(self._keyed(placed))
        return ([Placed(*one) for one in group] for group in groups)  # type: ignore[misc]

    def _keyed(self, placed: Iterator[Placed]) -> Iterator[tuple[object, object]]:
        assert self.form.key
        for one in placed:
            try:
                key = self.form.key(one.row, self.rules)
            except RowError as error:
                self.refused.add(Refusal(one.where, error.reason, error.detail))
                continue
            # Rows that stand alone share a key with none.
            yield (one.where if key is None else key), list(one)


def named(row: object, rules: Rules) -> dict[str, object]:
    """The row under the names used here, its prompt put together.

    Raises:
        RowError: it is no row, or has what no record could hold.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"a row must be an object with columns, got {shown(row)}")
    refuse_media(row, "the row")
    own: dict[str, Any] = {name: listed_objects(value) for name, value in row.items()}
    known = next((layout for layout in LAYOUTS if layout.matches(own)), None)
    read = known.read(own) if known else {}
    if known:  # its columns are read, and do not stand beside what is made of them
        own = {
            name: value for name, value in own.items() if name not in known.used or name in SHARED
        }
    prompt = read.get("prompt") or asked(own, "\n\n")
    name = "messages" if prompt is None else "prompt"
    if prompt is None and kind(own.get("messages")) == "messages":
        prompt = with_system(own, list(own["messages"]))
    if prompt is not None and any(own.get(one) for one in TEMPLATE_COLUMNS):
        chat = [user(prompt)] if isinstance(prompt, str) else prompt
        prompt = with_template_columns(read_messages(chat, name), own)
    for side in SIDES if rules.turns == "first" else ():
        if isinstance(read.get(side), list):
            read[side] = read[side][:1]
    if prompt is None:
        return {**own, **read}
    return {**own, **read, **dict.fromkeys(PARTS), name: prompt}


def _tell(first: Placed, rules: Rules, name: str) -> Form:
    """The form of a source, from its first row."""
    forms = [form for form in FORMS.values() if form.matches(first.row, rules)]
    if len(forms) == 1:
        return forms[0]
    fits = "\n".join(f"  {form.name}: {form.columns}" for form in forms or FORMS.values())
    if forms:
        names = " or ".join(form.name for form in forms)
        raise DataError(
            f"the columns of {first.where} fit several forms; say which with form ({names}):\n"
            f"{fits}"
        )
    has = ", ".join(map(str, first.row)) or "no columns"
    raise DataError(
        f"the columns of {first.where} fit no form of feedback (it has: {has}); name them with "
        f"columns, such as completion_a=response1, or votes. The forms:\n{fits}"
    )


def _provenance(unit: Sequence[Placed]) -> dict[str, object]:
    """Where a record comes from: the row's own source if it names one, else the file."""
    places = [one.where.rpartition(":") for one in unit]
    source = unit[0].row.get("source")
    own = source if isinstance(source, str) else places[0][0]
    return {"source": own, "rows": [int(number) for _, _, number in places]}
