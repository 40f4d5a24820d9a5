"""One pass of a conversion: rows to records, changed as asked, to the rows of a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, product
from typing import Any

from penchant.data.converting import projects as layouts
from penchant.data.converting.exchange import Exchange, Kind
from penchant.data.converting.textform import TextForm
from penchant.data.grouping import digest, grouped
from penchant.data.lines import Item
from penchant.data.records import DataError, Label, Pair, Refusal, counted, is_chat
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.messages import MESSAGE_FIELDS, plain, with_template_columns
from penchant.data.rows.row import TEMPLATE_COLUMNS, RowError
from penchant.data.rows.usable import require_none, usable
from penchant.data.tally import Tally

KINDS = ("labels", "pairs", "prompts")
# Stands on labels made of pairs: which two belong together.
TOGETHER = "pair"


@dataclass(frozen=True)
class _Read:
    """A record with the columns beside it."""

    record: Pair | Label
    others: dict[str, Any] = field(default_factory=dict)


class Run:
    """One pass over a source; counts what is read, refused and lost."""

    def __init__(self, name: str, to: str | None, origin: str | None, change: TextForm) -> None:
        self.name, self.to, self.origin, self.change = name, to, origin, change
        self.layout: Exchange | None = None
        self.refused = Tally()
        self.records = self.desirable = self.ties = self.alone = 0
        self.lost: Counter[str] = Counter()

    @property
    def kind_written(self) -> str:
        """Labels, pairs or prompts."""
        assert self.layout
        return self.to if self.to in KINDS and self.to else self.layout.kind

    def rows(self, items: Iterable[Item]) -> Iterator[dict[str, Any]]:
        """The rows to write."""
        records = self._records(items)
        if (first := next(records, None)) is None or self.layout is None:
            return
        records = chain([first], records)
        if self.to == "prompts":
            yield from _distinct_prompts(records)
            return
        if self.to == "pairs" and self.layout.kind == "labels":
            records = self._paired(records)
        elif self.to == "labels" and self.layout.kind == "pairs":
            records = self._judged(records)
        project = "trl" if self.to is None or self.to in KINDS else self.to
        of: Kind = "labels" if self.kind_written == "labels" else "pairs"
        target = layouts.target(project, of)
        if target is None:
            raise DataError(f"{project} has no layout of {of}; convert to pairs first")
        for one in records:
            try:
                yield self._written(one, target)
            except RowError as error:
                self.refused.add(Refusal(one.record.where, error.reason, error.detail))

    def read(self) -> str:
        """What was read and refused, in words."""
        assert self.layout
        what = counted(self.records, self.layout.kind.removesuffix("s"))
        if self.layout.kind == "labels":
            rest = self.records - self.desirable
            what += f" ({self.desirable} desirable, {rest} undesirable)"
        shown = self.layout.columns if self.layout.project == "trl" else self.layout.name
        text = f"read {what} from {self.name}, layout: {shown}"
        text += f"; {counted(self.ties, 'tie')} left out" if self.ties else ""
        if not self.refused:
            return text
        return f"{text}; {counted(len(self.refused), 'row')} refused\n{self.refused.describe()}"

    def check(self, written: int, strict: bool) -> None:
        """Refuse a result without a row, or when strict with a refusal."""
        if strict:
            require_none(self.refused, self.name)
        if written:
            return
        if self.alone:
            raise DataError(
                f"no prompt of {self.name} has both a desirable and an undesirable completion, "
                "so no pair can be made; train on the labels with method kto"
            )
        raise DataError(f"no row of {self.name} can be converted\n{self.refused.describe()}")

    def _records(self, items: Iterable[Item]) -> Iterator[_Read]:
        for one in usable(items, self.refused, self._record):
            if one is None:
                self.ties += 1
                continue
            self.records += 1
            self.desirable += isinstance(one.record, Label) and one.record.desirable
            yield one

    def _record(self, where: str, row: object) -> _Read | None:
        if not isinstance(row, Mapping):
            raise RowError("wrong type", "a row must be an object with fields")
        self.layout = self.layout or self._tell(row, where)
        layout = self.layout
        if layout is None or not layout.matches(row):
            has = ", ".join(map(str, row)) or "no fields"
            asked = layout.name if layout else f"a layout of {', '.join(layouts.SOURCES)}"
            raise RowError("in no such layout", f"the row has {has}; it must be in {asked}")
        own = layout.read(row)
        record: Pair | Label | None
        canonical = {**_beside(row, layout), **own}
        # They stay columns, for which a target has a place or not.
        beside = {name: canonical.pop(name, None) for name in TEMPLATE_COLUMNS}
        if layout.kind == "pairs":
            record = formats.to_pair(canonical, None, where)
        else:
            record = labels.to_label(canonical, None, where)
        if record is None:
            return None
        with_template_columns(record.prompt, beside)  # refuses what no template could be given
        self._count_dropped(own)
        others = {**_beside(row, layout), **{k: own[k] for k in layout.inner if k in own}}
        if isinstance(record, Pair):
            if "label" in layout.used and others.pop("votes", None) is not None:
                self.lost["votes, of which agreement stays"] += 1
            strength = {"margin": record.margin, "agreement": record.agreement}
            others |= {k: v for k, v in strength.items() if v is not None and k not in others}
        return _Read(record, others)

    def _tell(self, row: Mapping[str, object], where: str) -> Exchange | None:
        """The layout of the source, from the first row that fits one."""
        candidates = layouts.matching(row)
        if self.origin:
            candidates = [one for one in layouts.LAYOUTS if one.matches(row)]
            candidates = [one for one in candidates if one.project == self.origin]
        if len(candidates) > 1:
            fits = "\n".join(f"  {one.name}" for one in candidates)
            raise DataError(
                f"the columns of {where} fit several layouts; say which with from "
                f"({' or '.join(one.project for one in candidates)}):\n{fits}"
            )
        if (
            candidates
            and candidates[0].project == "trl"
            and not self.change.to
            and self._is_target(candidates[0])
        ):
            raise DataError(
                f"{self.name} holds {candidates[0].kind} already; there is nothing to convert"
            )
        return candidates[0] if candidates else None

    def _is_target(self, layout: Exchange) -> bool:
        canonical = layout.columns in (formats.TEXT.name, formats.CHAT.name)
        canonical |= layout.columns in (labels.TEXT.name, labels.CHAT.name)
        return canonical and self.to in (layout.kind, "trl")

    def _count_dropped(self, own: Mapping[str, object]) -> None:
        """Count what messages say that records do not hold."""
        texts = (own.get(name) for name in ("prompt", "chosen", "rejected", "completion"))
        for text in (*texts, own.get("messages")):
            for message in text if isinstance(text, list | tuple) else ():
                for name in message if isinstance(message, Mapping) else ():
                    if name not in MESSAGE_FIELDS and message[name] is not None:
                        self.lost[f"'{name}' of a message"] += 1

    def _judged(self, records: Iterator[_Read]) -> Iterator[_Read]:
        """Each pair as two labels, numbered so that the way back finds them."""
        for number, one in enumerate(records, start=1):
            assert isinstance(one.record, Pair)
            others = {**one.others, TOGETHER: number}
            for label in one.record.labels():
                yield _Read(label, others)

    def _paired(self, records: Iterator[_Read]) -> Iterator[_Read]:
        """Pairs of the labels of a prompt; of one numbered pair, where labels say so."""
        for group in grouped(_by_prompt(records)):
            judged = [_unpacked(value) for value in group]
            given = [label for label, _ in judged]
            matches = partners(given)
            self.alone += len(given) - len({number for match in matches for number in match})
            for good, bad in matches:
                common = judged[good][1].items() if judged[good][1] == judged[bad][1] else ()
                if not common and (judged[good][1] or judged[bad][1]):
                    self.lost["columns in which two labels differ"] += 1
                others = {name: value for name, value in common if name != TOGETHER}
                yield _Read(joined(given[good], given[bad]), others)

    def _written(self, one: _Read, target: Exchange) -> dict[str, Any]:
        record = one.record
        changed: Pair | Label
        if isinstance(record, Pair):
            changed = self.change.pair(record, self.lost)
        else:
            changed = self.change.label(record, self.lost)
        if target.project != "trl" and not is_chat(changed.prompt):
            raise RowError("text in place of chat", f"{target.project} holds chat; add text: chat")
        if not is_chat(changed.prompt):
            _require_no_template(one)
        assert target.write
        row = target.write(changed)
        for name, value in one.others.items():
            if target.others and name not in row:
                row[name] = value
            elif name in target.inner:
                row[target.used[0]][name] = value
            elif value is not None:
                self.lost[f"column '{name}', for which {target.project} has no place"] += 1
        return row


def _beside(row: Mapping[str, Any], layout: Exchange) -> dict[str, Any]:
    """The columns that a layout does not use."""
    return {str(name): value for name, value in row.items() if name not in layout.used}


def _require_no_template(one: _Read) -> None:
    """Refuse a chat as a string that its tools would be lost for."""
    messages = one.record.prompt[:1] if is_chat(one.record.prompt) else ()
    for place in (one.others, *messages):
        for name in TEMPLATE_COLUMNS:
            if place.get(name):
                raise RowError(
                    f"{name} beside a text prompt",
                    f"the row has '{name}', which only a chat template reads; leave text as chat",
                )


def _for_template(one: _Read) -> dict[str, Any]:
    """The columns that belong to a prompt beside its messages."""
    return {name: one.others[name] for name in TEMPLATE_COLUMNS if one.others.get(name)}


def _distinct_prompts(records: Iterable[_Read]) -> Iterator[dict[str, Any]]:
    seen: set[bytes] = set()
    for one in records:
        row = {"prompt": plain(one.record.prompt), **_for_template(one)}
        if (key := digest(row)) not in seen:
            seen.add(key)
            yield row


def _by_prompt(records: Iterable[_Read]) -> Iterator[tuple[object, object]]:
    for one in records:
        label = one.record
        assert isinstance(label, Label)
        content = [plain(label.prompt), plain(label.completion), label.desirable, label.where]
        yield [content[0], one.others.get(TOGETHER), _for_template(one)], [*content, one.others]


def _unpacked(value: Any) -> tuple[Label, dict[str, Any]]:
    prompt, completion, desirable, where, others = value
    one, other = (text if isinstance(text, str) else tuple(text) for text in (prompt, completion))
    return Label(one, other, desirable, where), others


def partners(group: list[Label]) -> list[tuple[int, int]]:
    """Which desirable completion meets which undesirable one, by their places in the group."""
    desirable = [number for number, label in enumerate(group) if label.desirable]
    undesirable = [number for number, label in enumerate(group) if not label.desirable]
    return [
        (good, bad)
        for good, bad in product(desirable, undesirable)
        if group[good].completion != group[bad].completion
    ]


def joined(good: Label, bad: Label) -> Pair:
    """Two labels of one prompt as a pair."""
    where = good.where if good.where == bad.where else f"{good.where} and {bad.where}"
    return Pair(good.prompt, good.completion, bad.completion, where)
