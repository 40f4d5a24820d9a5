"""What is kept of each row: numbers of fixed size, so that a file need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from penchant.audit.patterns import CUES, bits, opening
from penchant.data.faults import answers, has_stand_in, joined, nearly_same, whole_text
from penchant.data.lines import Item
from penchant.data.near import ABSENT, NUM_HASHES, Signatures, sign_records
from penchant.data.patterns import LEFTOVERS, MEDIA_MARKS, PERSONAL, SEARCHED_CHARACTERS
from penchant.data.records import Label, Pair, Refusal, Text, canonical, prompt_key
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.messages import said
from penchant.data.rows.row import Layout, RowError

# What an item of the source turned out to be.
RECORD, TIE, REFUSED = range(3)

COLUMNS = np.dtype(
    [
        ("file", np.uint16),
        ("number", np.int64),  # of the line or row in its file
        ("kind", np.uint8),
        ("reason", np.uint8),  # of a refusal
        ("prompt", np.uint64),  # hashes
        ("chosen", np.uint64),
        ("rejected", np.uint64),
        ("prompt_characters", np.uint32),
        ("chosen_characters", np.uint32),
        ("rejected_characters", np.uint32),
        ("chosen_cues", np.uint16),  # bits of CUES
        ("rejected_cues", np.uint16),
        ("chosen_opening", np.uint64),
        ("rejected_opening", np.uint64),
        ("personal", np.uint8),  # bits of PERSONAL
        ("leftovers", np.uint8),  # bits of LEFTOVERS
        ("media", np.uint8),  # bits of MEDIA_MARKS
        ("blank_difference", np.bool_),  # they differ in nothing that is seen but case
        ("stand_in", np.bool_),  # an answer is a word for no value
        ("desirable", np.bool_),  # of a label
        ("agreement", np.float32),
        ("margin", np.float32),
    ]
)
PROMPT = 0  # in signatures, before the completions
KEPT_CHARACTERS = 40_000


@dataclass
class Block:
    """Facts of some consecutive rows.

    Attributes:
        table: a row each, of `COLUMNS`.
        signatures: MinHash, [rows, prompt and completions, NUM_HASHES]; of a label, and of a row
            that is no record, what is lacking is the largest number.
        refused: by position in the block.
        kept: records whose priority is low enough to be sampled, with that and their position.
    """

    table: NDArray[Any]
    signatures: Signatures
    refused: dict[int, Refusal] = field(default_factory=dict)
    kept: list[tuple[int, int, Pair | Label]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Consecutive rows to look at, all in one layout."""

    items: list[Item]
    start: int
    file: int
    layout: Layout | None
    below: int

    @property
    def convert(self) -> Callable[[object, Layout | None, str], Pair | Label | None]:
        """Makes a record of a row."""
        return labels.to_label if self.layout in labels.LAYOUTS else formats.to_pair


def look(job: Job) -> Block:
    """Reduce rows to their facts; this is what runs on every core."""
    table = np.zeros(len(job.items), COLUMNS)
    table["file"] = job.file
    table["agreement"] = table["margin"] = np.nan
    block = Block(table, np.full((len(table), 3, NUM_HASHES), ABSENT))
    records: list[tuple[int, Pair | Label]] = []
    for at, item in enumerate(job.items):
        where = item.where if isinstance(item, Refusal) else item[0]
        table[at]["number"] = int(where.rpartition(":")[2])
        record = _record(job, item)
        if isinstance(record, Refusal):
            block.refused[at] = record
            table[at]["kind"] = REFUSED
        elif record is None:
            table[at]["kind"] = TIE
        else:
            records.append((at, record))
            _describe(table[at], record)
            priority = xxhash.xxh3_64_intdigest((job.start + at).to_bytes(8, "little"))
            if priority < job.below:
                block.kept.append((priority, at, _shortened(record)))
    if records:
        places = np.array([position for position, _ in records])
        block.signatures[places] = sign_records([record for _, record in records])
    return block


def _record(job: Job, item: Item) -> Pair | Label | Refusal | None:
    if isinstance(item, Refusal):
        return item
    where, row = item
    try:
        return job.convert(row, job.layout, where)
    except RowError as error:
        return Refusal(where, error.reason, error.detail)


def _describe(row: Any, record: Pair | Label) -> None:
    """Fill a row of the table, which is changed in place."""
    prompt = joined(record.prompt)
    row["prompt"] = _hash(prompt_key(record))
    row["prompt_characters"] = len(prompt)
    for side, completion in zip(("chosen", "rejected"), answers(record), strict=False):
        text = joined(completion)
        searched = text[:SEARCHED_CHARACTERS]
        row[side] = _hash(canonical(completion))
        row[f"{side}_characters"] = len(text)
        row[f"{side}_cues"] = bits(CUES, searched)
        row[f"{side}_opening"] = _hash(opening(text))
    everything = whole_text(record)
    row["personal"] = bits(PERSONAL, everything)
    row["leftovers"] = bits(LEFTOVERS, everything)
    row["stand_in"] = has_stand_in(record)
    row["media"] = bits(MEDIA_MARKS, everything)
    if isinstance(record, Label):
        row["desirable"] = record.desirable
        return
    row["blank_difference"] = nearly_same(record.chosen, record.rejected)
    if record.agreement is not None:
        row["agreement"] = record.agreement
    if record.margin is not None:
        row["margin"] = record.margin


def _shortened(record: Pair | Label) -> Pair | Label:
    """The record with each plain text and message of a length that can be kept."""

    def short(text: Text) -> Text:
        if isinstance(text, str):
            return text[:KEPT_CHARACTERS]
        return tuple({"role": one["role"], "content": said(one)[:KEPT_CHARACTERS]} for one in text)

    if isinstance(record, Label):
        return Label(short(record.prompt), short(record.completion), record.desirable, record.where)
    return Pair(
        short(record.prompt), short(record.chosen), short(record.rejected), record.where,
        record.margin, record.agreement,
    )  # fmt: skip


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())
