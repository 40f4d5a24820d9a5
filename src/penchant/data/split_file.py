"""Divide a file by prompt, near-duplicates together, so that its parts are alike."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from penchant.data.faults import ALIKE
from penchant.data.hints import hint
from penchant.data.lines import Item
from penchant.data.opening import Sources
from penchant.data.prompts import PROMPTS, to_prompt
from penchant.data.records import DataError, counted
from penchant.data.rows.messages import contents
from penchant.data.rows.usable import usable
from penchant.data.tally import Tally
from penchant.data.writing import SUFFIXES, encoded, new_file, require_new

if TYPE_CHECKING:
    from penchant.data.opening import Source

DEFAULT_PARTS = {"train": 0.9, "test": 0.1}
NO_SOURCE = "-"
# Rows of similar length: from the shortest quarter to the longest.
NUM_LENGTHS = 4


@dataclass(frozen=True)
class Part:
    """One part of a split.

    Args:
        name, share: as asked for.
        output: its file.
        rows, prompts: how many it has; prompts that are nearly the same count as one.
        sources: rows by source.
        length: median bytes of a row.
    """

    name: str
    share: float
    output: Path
    rows: int
    prompts: int
    sources: Mapping[str, int]
    length: float


@dataclass(frozen=True)
class Split:
    """What `split_file` did: the parts, and rows that were refused."""

    source: str
    parts: Sequence[Part]
    near: int
    refused: Tally

    def summary(self) -> str:
        """What stands where."""
        total = sum(part.rows for part in self.parts)
        together = counted(sum(part.prompts for part in self.parts), "prompt")
        lines = [
            f"divided {counted(total, 'row')} of {self.source} with {together}; "
            f"{self.near} nearly the same as another stay with it"
        ]
        for part in self.parts:
            lines.append(
                f"  {part.name}: {counted(part.rows, 'row')} ({part.rows / total:.1%}, asked "
                f"{part.share:.1%}), {counted(part.prompts, 'prompt')}, median row "
                f"{part.length:.0f} bytes: {part.output}"
            )
            if set(part.sources) != {NO_SOURCE}:
                shares = (f"{name} {n} ({n / part.rows:.1%})" for name, n in part.sources.items())
                lines.append(f"    {', '.join(shares)}")
        if self.refused:
            lines += [f"{counted(len(self.refused), 'row')} refused", self.refused.describe()]
        return "\n".join(lines)


@dataclass
class _Seen:
    """What is kept of each row: its prompt's number, its source and its length."""

    prompts: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    names: dict[str, int] = field(default_factory=dict)
    refused: Tally = field(default_factory=Tally)


def split_file(
    source: Source,
    output: str | Path,
    *,
    parts: Mapping[str, float] | None = None,
    by: str = "source",
    similarity: float = ALIKE,
    format: str = "jsonl",
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Split:
    """Divide rows into files; equal and near-equal prompts are never on two sides.

    Rows keep all their columns and their order. The source is read twice, and little is kept of
    each row between.

    Args:
        source: anything that training takes.
        output: a folder, made where it does not exist; each part becomes a file in it.
        parts: the share of rows of each part, by name; they add up to 1.
        by: the column whose values should be in all parts alike, as should rows of each length.
        similarity: from which prompts stay together, as for `NearGroups`.
        format: jsonl, jsonl.gz or parquet.
        seed: the same seed and source give the same bytes.
        split, columns: as for `read_pairs`; columns are written under their new names.
        strict: raise when any row is refused, instead of counting it.

    Raises:
        DataError: a setting is impossible, a file exists, the source cannot be read, or has
            fewer prompts than there are parts.
    """
    shares = _checked(parts or DEFAULT_PARTS, similarity, format)
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; set output to a folder for the parts")
    files = {name: folder / f"{name}.{format}" for name in shares}
    for file in files.values():
        if folder.exists():
            require_new(file)
    sources = Sources.of(source, split, columns)
    seen, groups = _look(sources.items(), by, similarity)
    if strict and seen.refused:
        raise DataError(f"strict allows no refusal\n{seen.refused.describe()}")
    _require_prompts(sources, seen)
    strata = _strata(seen, groups)
    if len(strata) < len(shares):
        raise DataError(
            f"{sources.name} has {counted(len(strata), 'distinct prompt')}, too few for "
            f"{len(shares)} parts: a prompt goes wholly to one; ask for fewer parts"
        )
    places = assign(strata, list(shares.values()), seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror}; set output") from error
    with ExitStack() as stack:
        writers = [stack.enter_context(new_file(file)) for file in files.values()]
        again = usable(sources.items("dividing"), Tally(), _with_prompt)
        for (_, row), prompt in zip(again, seen.prompts, strict=True):
            writers[places[groups[prompt]]].write(row)
    described = _described(seen, groups, places, shares, files)
    return Split(sources.name, described, len(groups) - len(set(groups)), seen.refused)


def _require_prompts(sources: Sources, seen: _Seen) -> None:
    """Refuse rows of which none has a prompt, with the command that makes them readable."""
    if seen.prompts:
        return
    suggestion = next(filter(None, (hint(sources, part, PROMPTS) for part in sources.parts)), None)
    raise DataError(
        f"no row of {sources.name} has a prompt by which to divide"
        + (f": {suggestion}" if suggestion else f"\n{seen.refused.describe()}")
    )


def assign(
    strata: Mapping[int, tuple[object, int]], shares: Sequence[float], seed: int
) -> dict[int, int]:
    """Give each group to a part, so that each stratum is divided by the shares.

    What one stratum cannot divide is made up for in the next.

    Args:
        strata: the stratum and the number of rows of each group.
        shares: of each part; they add up to 1. There are at least as many groups.
        seed: of the order of groups.

    Returns:
        The part of each group; none stays empty.
    """
    by_stratum: dict[object, list[int]] = {}
    for group, (stratum, _) in strata.items():
        by_stratum.setdefault(stratum, []).append(group)
    places: dict[int, int] = {}
    owed = [0.0] * len(shares)
    for stratum, members in sorted(by_stratum.items(), key=lambda one: str(one[0])):
        random.Random(f"{seed} {stratum}").shuffle(members)
        members.sort(key=lambda group: -strata[group][1])
        total = sum(strata[group][1] for group in members)
        owed = [rest + share * total for rest, share in zip(owed, shares, strict=True)]
        for group in members:
            part = max(range(len(shares)), key=owed.__getitem__)
            places[group] = part
            owed[part] -= strata[group][1]
    _fill_empty(places, strata, len(shares))
    return places


def _fill_empty(
    places: dict[int, int], strata: Mapping[int, tuple[object, int]], num_parts: int
) -> None:
    """Give a part that stayed empty the smallest group of the part that has most."""
    for part in range(num_parts):
        if part not in places.values():
            largest, _ = Counter(places.values()).most_common(1)[0]
            members = [group for group, place in places.items() if place == largest]
            places[min(members, key=lambda group: strata[group][1])] = part


def _checked(parts: Mapping[str, float], similarity: float, format: str) -> dict[str, float]:
    if len(parts) < 2:
        raise DataError("parts must name at least two, such as train=0.9,test=0.1")
    for name, share in parts.items():
        if not share > 0 or not name.strip() or "/" in name or name.startswith("."):
            raise DataError(f"parts must be names with shares above 0, got {name}={share:g}")
    if abs(sum(parts.values()) - 1) > 1e-6:
        raise DataError(f"the shares of parts must add up to 1, got {sum(parts.values()):g}")
    if not 0 < similarity <= 1:
        raise DataError(f"similarity must be above 0 and at most 1, got {similarity:g}")
    if f".{format}" not in SUFFIXES:
        known = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise DataError(f"format must be one of {known}, got {format!r}")
    return dict(parts)


def _with_prompt(where: str, row: object) -> tuple[str, Mapping[str, Any]]:
    """The text of the row's prompt, and the row."""
    prompt = to_prompt(row, None, where)
    assert isinstance(row, Mapping)
    return "\n".join(contents(prompt.prompt)), row


def _look(items: Iterable[Item], by: str, similarity: float) -> tuple[_Seen, list[int]]:
    """Read all rows once; also the group of each distinct prompt."""
    from penchant.data.near_groups import NearGroups

    seen, near = _Seen(), NearGroups(similarity)
    for prompt, row in usable(items, seen.refused, _with_prompt):
        value = row.get(by)
        name = NO_SOURCE if value is None else str(value)
        seen.prompts.append(near.add(prompt))
        seen.sources.append(seen.names.setdefault(name, len(seen.names)))
        seen.lengths.append(len(encoded(row)))
    return seen, near.groups()


def _strata(seen: _Seen, groups: Sequence[int]) -> dict[int, tuple[object, int]]:
    """The stratum of each group of prompts, and its number of rows: as most of its rows are."""
    ordered = sorted(seen.lengths)
    edges = [ordered[len(ordered) * n // NUM_LENGTHS] for n in range(1, NUM_LENGTHS) if ordered]
    names = list(seen.names)
    kinds: dict[int, Counter[tuple[str, int]]] = {}
    for prompt, source, length in zip(seen.prompts, seen.sources, seen.lengths, strict=True):
        quarter = sum(length >= edge for edge in edges)
        kinds.setdefault(groups[prompt], Counter())[names[source], quarter] += 1
    return {group: (counts.most_common(1)[0][0], counts.total()) for group, counts in kinds.items()}


def _described(
    seen: _Seen,
    groups: Sequence[int],
    places: Mapping[int, int],
    shares: Mapping[str, float],
    files: Mapping[str, Path],
) -> list[Part]:
    names = list(seen.names)
    sources = [Counter[str]() for _ in shares]
    lengths: list[list[int]] = [[] for _ in shares]
    for prompt, source, length in zip(seen.prompts, seen.sources, seen.lengths, strict=True):
        part = places[groups[prompt]]
        sources[part][names[source]] += 1
        lengths[part].append(length)
    prompts = Counter(places.values())
    return [
        Part(
            name, share, files[name], len(lengths[number]), prompts[number],
            dict(sorted(sources[number].items())), median(lengths[number]),
        )
        for number, (name, share) in enumerate(shares.items())
    ]  # fmt: skip
