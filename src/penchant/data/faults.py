"""Faults of records: one id, one wording and one severity, whoever looks for them.

`penchant data inspect` finds the rows of each, `penchant check` and `penchant train` count them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from penchant.core.findings import Finding, Severity
from penchant.data.records import Label, Pair, Record, Text, canonical, counted, prompt_key
from penchant.data.rows.messages import contents

# Stand in remedies for what the user has named.
FILE, HELD_OUT = "FILE", "HELD_OUT"
MANY = 0.05  # share of records from which a fault costs more than a note
FEW_SPOIL = 0.01  # likewise of a fault that teaches the wrong thing
# What tables and programs write where there is no value.
STAND_INS = {"none", "nan", "null", "undefined", "<na>"}
# Soft hyphens, marks of direction, and spaces without width; not the joiners, which change signs.
UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")


@dataclass(frozen=True)
class Count:
    """How many records have a fault.

    Attributes:
        num: those with the fault; total: all of them.
        noun: what is counted, in the singular.
        kinds: where the fault has several, the records with each.
    """

    num: int
    total: int
    noun: str
    kinds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """One mistake that records can have.

    Attributes:
        id: of the finding; `penchant data clean --drop ID` removes its rows.
        says: what follows "3 pairs (1.5%)".
        remedy: what to do.
        many: share of the records above which it is a warning, else a note; None is always a note.
    """

    id: str
    says: str
    remedy: str
    many: float | None = 0.0

    def severity(self, count: Count) -> Severity:
        """A warning where more than `many` of the records have the fault, else a note."""
        many = self.many is not None and count.num > self.many * count.total
        return "warning" if many else "note"

    def title(self, count: Count) -> str:
        """One sentence with the numbers."""
        kinds = ", ".join(f"{name} in {num}" for name, num in count.kinds.items() if num)
        said = f"{counted(count.num, count.noun)} ({count.num / count.total:.1%}) {self.says}"
        return f"{said}: {kinds}" if kinds else said

    def found(self, count: Count) -> Iterator[Finding]:
        """The finding where some of the records have the fault; nothing where none has."""
        if count.num:
            numbers = {"num": count.num, "share": count.num / count.total, **count.kinds}
            yield Finding(self.id, self.severity(count), self.title(count), self.remedy, numbers)


@dataclass(frozen=True)
class Share:
    """How many records of one sort have a fault that only one rule knows."""

    noun: str
    num: int
    total: int

    def has(self, name: str, fault: str, remedy: str, *, many: float = MANY) -> Iterator[Finding]:
        """A finding where some of the records have the fault; nothing where none has.

        Args:
            name: the finding's id.
            fault: what follows "3 pairs (1.5%)".
            remedy: what to do.
            many: share above which it is a warning.
        """
        yield from Fault(name, fault, remedy, many).found(Count(self.num, self.total, self.noun))


def _drop(name: str, more: str = "") -> str:
    return f"drop them: penchant data clean {FILE} --drop {name}{more} --output clean.jsonl"


def addressed(remedy: str, data: str, held_out: str = "") -> str:
    """A remedy whose commands name the data.

    Args:
        remedy: of a fault.
        data: as a command line names them; held_out: likewise the evaluation data.
    """
    return remedy.replace(FILE, data).replace(HELD_OUT, held_out or HELD_OUT)


MIN_AGREEMENT = 0.6  # share of the votes for a preference, below which it is ambiguous
ALIKE = 0.65  # least similarity of near completions and of near prompts across files
_FAULTS = (
    Fault(
        "ties", "left out while reading: a tie holds no preference",
        "nothing to do; drop them so that every tool leaves them out", None,
    ),
    Fault(
        "refused-rows", "refused while reading and left out",
        "correct them at their source, or drop them; strict makes them an error", FEW_SPOIL,
    ),
    Fault(
        "white-space", "whose answers differ in white space, case or invisible characters only: "
        "ties that are still trained on", _drop("white-space"), FEW_SPOIL,
    ),
    Fault(
        "low-agreement", "with less than {:.0%} of the votes for the chosen answer",
        _drop("low-agreement") + "; or set label_smoothing, or a higher beta",
    ),
    Fault(
        "split-votes", "on which the votes are not unanimous",
        "keep them with a method that allows for noise (robust, ipo), or "
        + _drop("split-votes"), None,
    ),
    Fault(
        "stand-in-answers", "of which an answer is only a word for no value, as None or nan",
        _drop("stand-in-answers"), FEW_SPOIL,
    ),
    Fault("zero-margin", "with a margin of 0, which are ties", _drop("zero-margin")),
    Fault("duplicates", "that repeat an earlier one", _drop("duplicates")),
    Fault("near-duplicates", "nearly equal to an earlier one", _drop("near-duplicates")),
    Fault(
        "contradictions", "that others state the other way round", _drop("contradictions"),
        FEW_SPOIL,
    ),
    Fault("cycles", "in cycles: A over B, B over C, C over A", _drop("cycles"), FEW_SPOIL),
    Fault(
        "personal-data", "with personal data",
        _drop("personal-data") + "; or mask them where they come from",
    ),
    Fault(
        "template-leftovers", "with what is left of a chat template",
        f"make chats of such texts: penchant data convert {FILE} --text chat --output chat.jsonl; "
        "or " + _drop("template-leftovers"),
    ),
    Fault(
        "media-marks", "with a mark of an image, a sound or a video, which the model is not shown",
        _drop("media-marks") + "; or take the marks out where the texts do without",
    ),
    Fault(
        "leaks", "with a prompt that is held out too: held-out accuracy will flatter",
        _drop("leaks", f" --eval_data {HELD_OUT}") + "; or divide again with penchant data split",
    ),
    Fault(
        "near-leaks", "with nearly a prompt that is held out",
        _drop("near-leaks", f" --eval_data {HELD_OUT}")
        + f"; or penchant data split --similarity {ALIKE}",
    ),
)  # fmt: skip
FAULTS = {fault.id: fault for fault in _FAULTS}
LABELS_CONTRADICT = replace(
    FAULTS["contradictions"], says="of completions that were judged both ways"
)


def fault_of(name: str, noun: str, min_agreement: float = MIN_AGREEMENT) -> Fault:
    """The fault of an id, as it is said of pairs or labels.

    Args:
        name: of `FAULTS`.
        noun: what its records are called.
        min_agreement: the share of votes below which a preference is ambiguous.
    """
    if name == "contradictions" and noun == "label":
        return LABELS_CONTRADICT
    fault = FAULTS[name]
    return replace(fault, says=fault.says.format(min_agreement))


def count_faults(records: Sequence[Record]) -> dict[str, Count]:
    """The faults that records show by themselves, by id; near duplicates are left out.

    Args:
        records: at least one, all of one kind.
    """
    pairs = [record for record in records if isinstance(record, Pair)]
    rated = [pair.agreement for pair in pairs if pair.agreement is not None]
    nums = {
        "stand-in-answers": sum(has_stand_in(record) for record in records),
        "white-space": sum(nearly_same(pair.chosen, pair.rejected) for pair in pairs),
        "low-agreement": sum(share < MIN_AGREEMENT for share in rated),
        "split-votes": sum(share < 1 for share in rated),
        "zero-margin": sum(pair.margin == 0 for pair in pairs),
        "duplicates": count_repeated(records),
    }
    if len({prompt_key(record) for record in records}) < len(records):
        from penchant.data.cycles import count_contradicted, count_in_cycles

        nums["contradictions"] = count_contradicted(records)
        nums["cycles"] = count_in_cycles(pairs)
    noun, total = records[0].noun, len(records)
    return {name: Count(num, total, noun) for name, num in nums.items() if num}


def count_patterns(records: Sequence[Record]) -> dict[str, Count]:
    """Personal data, and marks of templates and media, in prompts and completions, by id."""
    from penchant.data.patterns import LEFTOVERS, MEDIA_MARKS, PERSONAL, matching

    counts: dict[str, Count] = {}
    for name, tests in (
        ("personal-data", PERSONAL),
        ("template-leftovers", LEFTOVERS),
        ("media-marks", MEDIA_MARKS),
    ):
        kinds = dict.fromkeys(tests, 0)
        num = 0
        for record in records:
            matched = matching(tests, whole_text(record))
            num += bool(matched)
            for kind in matched:
                kinds[kind] += 1
        if num:
            counts[name] = Count(num, len(records), records[0].noun, kinds)
    return counts


def count_leaks(records: Sequence[Record], held_out: Sequence[Record]) -> Count:
    """Records whose prompt is held out too, word for word."""
    known = {prompt_key(record) for record in held_out}
    num = sum(prompt_key(record) in known for record in records)
    return Count(num, len(records), records[0].noun)


def joined(text: Text) -> str:
    """What a text says, whoever says it, as one string."""
    return "\n".join(contents(text))


def answers(record: Record) -> tuple[Text, ...]:
    """Those of a pair, chosen first; the one of a label; none of a prompt."""
    if isinstance(record, Pair):
        return record.chosen, record.rejected
    return (record.completion,) if isinstance(record, Label) else ()


def whole_text(record: Record) -> str:
    """Prompt and completions as one string, each as far as texts are searched."""
    from penchant.data.patterns import SEARCHED_CHARACTERS

    texts = (record.prompt, *answers(record))
    return "\n".join(joined(text)[:SEARCHED_CHARACTERS] for text in texts)


def nearly_same(first: Text, second: Text) -> bool:
    """Whether two completions differ in white space, case or characters without width only."""
    return _squeezed(first) == _squeezed(second)


def has_stand_in(record: Record) -> bool:
    """Whether an answer is a word that stands for no value."""
    return any(joined(text).strip().casefold() in STAND_INS for text in answers(record))


def _squeezed(text: Text) -> list[str]:
    return UNSEEN.sub("", "\n".join(contents(text))).casefold().split()


def count_repeated(records: Sequence[Record]) -> int:
    """Records that say what an earlier one says, in prompt, completions and label."""
    return len(records) - len({statement(record) for record in records})


def statement(record: Record) -> tuple[object, ...]:
    """What a record says: equal ones repeat each other."""
    if isinstance(record, Pair):
        return prompt_key(record), canonical(record.chosen), canonical(record.rejected)
    if isinstance(record, Label):
        return prompt_key(record), canonical(record.completion), record.desirable
    return prompt_key(record), id(record)  # a prompt has columns of its own beside it
