"""Read sources once, on many cores, into a table of facts and a sample of records."""

from __future__ import annotations

import heapq
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO, Any, Literal

import numpy as np
from loky import ProcessPoolExecutor, cpu_count
from numpy.typing import NDArray

from penchant.audit.facts import (
    COLUMNS,
    RECORD,
    REFUSED,
    TIE,
    Block,
    Job,
    look,
)
from penchant.audit.finding import Places
from penchant.data.faults import answers, joined
from penchant.data.hints import hint
from penchant.data.lines import Item
from penchant.data.near import NUM_HASHES, Indices, Signatures
from penchant.data.opening import Part, Sources
from penchant.data.records import DataError, Label, Pair, Refusal, counted
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Layout
from penchant.data.tally import NUM_EXAMPLES

NUM_SAMPLED = 10_000
SAMPLED_CHARACTERS = 100_000_000  # of the sample together
JOB_ROWS, JOB_CHARACTERS = 500, 2_000_000
LARGEST = 1 << 64
SIGNED = (3, NUM_HASHES)
SERIAL_JOBS = 4  # a pool costs more than these
WAITING = 3  # jobs for each worker


@dataclass
class Scan:
    """What is known of the rows of some sources.

    Attributes:
        name: of the sources, as the user named them.
        layout: theirs, by name.
        kind: of the records.
        table: a row for each row of the sources, refused ones too; of `COLUMNS`.
        places: of the same rows.
        reasons: of refusals, by the table's `reason`.
        refusals: the first few of each reason.
        sample: records with their indices in the table, ascending.
        signatures: MinHash, [rows, prompt and completions, NUM_HASHES], on disk.
    """

    name: str
    layout: str
    kind: Literal["pairs", "labels"]
    table: NDArray[Any]
    places: Places
    reasons: list[str]
    refusals: dict[str, list[Refusal]]
    sample: list[tuple[int, Pair | Label]]
    signatures: Signatures

    @property
    def noun(self) -> str:
        """What a record is called."""
        return self.kind.removesuffix("s")

    @property
    def records(self) -> Indices:
        """The rows that can be trained on."""
        return np.flatnonzero(self.table["kind"] == RECORD)

    @property
    def ties(self) -> Indices:
        """The rows that hold no preference."""
        return np.flatnonzero(self.table["kind"] == TIE)

    @property
    def sampled_all(self) -> bool:
        """Whether the sample holds every record."""
        return len(self.sample) == int((self.table["kind"] == RECORD).sum())


@dataclass
class _Gatherer:
    """Collects blocks in order: 80 bytes per row grow with the source, the rest is on disk."""

    num_sampled: int
    file: IO[bytes]
    tables: list[NDArray[Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    layouts: list[Layout | None] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)
    heap: list[tuple[int, int, Pair | Label]] = field(default_factory=list)
    num_rows: int = 0
    characters: int = 0
    below: int = LARGEST

    def add(self, block: Block) -> None:
        for at, refusal in block.refused.items():
            code = self.reasons.setdefault(refusal.reason, min(len(self.reasons), 255))
            block.table[at]["reason"] = code
            examples = self.refusals.setdefault(refusal.reason, [])
            if len(examples) < NUM_EXAMPLES:
                examples.append(refusal)
        for priority, at, record in block.kept:
            if priority < self.below:
                # The heap's first entry is the largest priority, the next to go.
                heapq.heappush(self.heap, (-priority, self.num_rows + at, record))
                self.characters += _characters(record)
                self._trim()
        block.signatures.tofile(self.file)
        self.tables.append(block.table)
        self.num_rows += len(block.table)

    def _trim(self) -> None:
        """Hold the sample to its size: the records of lowest priority, which is random."""
        while len(self.heap) > self.num_sampled or (
            self.characters > SAMPLED_CHARACTERS and len(self.heap) > 1
        ):
            priority, _, record = heapq.heappop(self.heap)
            self.characters -= _characters(record)
            self.below = -priority


def scan(
    sources: Sources,
    *,
    num_sampled: int = NUM_SAMPLED,
    processes: int | None = None,
) -> Scan:
    """Read sources row by row and keep the facts.

    Args:
        sources: as for `read_pairs`; all of pairs, or all of labels.
        num_sampled: how many records are kept whole, at most.
        processes: how many look at rows; default: one a core.

    Raises:
        DataError: a source cannot be read, none holds a record, or one holds pairs and another
            labels.
    """
    name = sources.name
    with tempfile.TemporaryFile() as file:
        gathered = _Gatherer(num_sampled, file)
        jobs = _jobs(sources.parts, gathered)
        for block in _blocks(jobs, processes):
            gathered.add(block)
        table = np.concatenate([*gathered.tables, np.zeros(0, COLUMNS)])
        gathered.tables.clear()
        if not np.isin(table["kind"], (RECORD, TIE)).any():
            _refuse_other_layouts(sources)
        layouts = _require_records(name, table, gathered)
        # The mapping outlives the file.
        shape = (len(table), *SIGNED)
        signatures = np.memmap(file, np.uint32, "r", shape=shape)
    return Scan(
        name=name,
        layout=", ".join(dict.fromkeys(layout.name for layout in layouts)),
        kind="labels" if layouts[0] in labels.LAYOUTS else "pairs",
        table=table,
        places=Places(gathered.names, table["file"], table["number"]),
        reasons=list(gathered.reasons),
        refusals=gathered.refusals,
        sample=sorted((at, record) for _, at, record in gathered.heap),
        signatures=signatures,
    )


def _jobs(parts: Iterable[Part], gathered: _Gatherer) -> Iterator[Job]:
    """Rows in portions of bounded size; the first row of a file that fits a layout decides it."""
    start = 0
    for number, part in enumerate(parts):
        gathered.names.append(part.name)
        gathered.layouts.append(None)
        for portion in _portions(part.tracked("reading")):
            for item in portion:
                if isinstance(item, Refusal) or gathered.layouts[number]:
                    continue
                layout = formats.recognise(item[1]) or labels.recognise_label(item[1])
                gathered.layouts[number] = layout
            yield Job(portion, start, number, gathered.layouts[number], gathered.below)
            start += len(portion)


def _portions(items: Iterable[Item]) -> Iterator[list[Item]]:
    portion: list[Item] = []
    characters = 0
    for item in items:
        portion.append(item)
        characters += 0 if isinstance(item, Refusal) else _weight(item[1])
        if len(portion) >= JOB_ROWS or characters >= JOB_CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def _weight(value: object) -> int:
    """How many characters a row has, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 8


def _characters(record: Pair | Label) -> int:
    return sum(len(joined(text)) for text in (record.prompt, *answers(record)))


def _blocks(jobs: Iterator[Job], processes: int | None) -> Iterator[Block]:
    """Look at jobs on several cores, in order, with few of them waiting; a short source on one."""
    first = list(islice(jobs, SERIAL_JOBS))
    yield from map(look, first)
    rest = next(jobs, None)
    if rest is None:
        return
    workers = processes or cpu_count()
    if workers == 1:
        yield from map(look, chain([rest], jobs))
        return
    waiting: deque[Future[Block]] = deque()
    # Not forked: the hashing library has threads, which a fork would leave behind, locked. And
    # unlike those of multiprocessing, such processes do not run the user's script again.
    with ProcessPoolExecutor(workers) as pool:
        for job in chain([rest], jobs):
            waiting.append(pool.submit(look, job))
            if len(waiting) > WAITING * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _refuse_other_layouts(sources: Sources) -> None:
    """Refuse raw feedback and other projects' layouts by name, with the command to run."""
    if suggestion := next(
        filter(None, (hint(sources, part, labels.EITHER) for part in sources.parts)), None
    ):
        raise DataError(f"no row of {sources.name} can be inspected: {suggestion}")


def _require_records(name: str, table: NDArray[Any], gathered: _Gatherer) -> list[Layout]:
    """The layouts of the sources that have one; all of them of one kind of record."""
    layouts = [layout for layout in gathered.layouts if layout]
    if not (table["kind"] == RECORD).any() or not layouts:
        reasons = "\n".join(f"  {one}" for group in gathered.refusals.values() for one in group)
        ties = counted(int((table["kind"] == TIE).sum()), "tie")
        refused = int((table["kind"] == REFUSED).sum())
        known = "; ".join(one.name for one in (*formats.LAYOUTS, *labels.LAYOUTS))
        raise DataError(
            f"no row of {name} is a preference pair or a labelled completion: {refused} refused, "
            f"{ties}; the layouts are {known}\n{reasons}"
        )
    if len({layout in labels.LAYOUTS for layout in layouts}) > 1:
        layout_names = " and ".join(repr(layout.name) for layout in layouts)
        raise DataError(f"{name} hold pairs and labels ({layout_names}); inspect them apart")
    return layouts
