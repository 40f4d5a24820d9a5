"""Read pairs or labels from a file, a saved or loaded dataset, a list, or the Hugging Face hub.

A row that cannot be used is refused and counted, with its line; a source that cannot be used at
all raises `DataError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from penchant.data.opening import as_argument, open_source
from penchant.data.records import (
    NUM_EXAMPLES,
    Data,
    DataError,
    Label,
    Pair,
    Record,
    Refusal,
    counted,
    describe_refusals,
)
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Layout, RowError

if TYPE_CHECKING:
    from penchant.data.opening import Source

R = TypeVar("R", bound=Record)


class OtherKindError(DataError):
    """The source holds labels where pairs are wanted, or the reverse."""


def read_pairs(source: Source, *, strict: bool = False, split: str = "train") -> Data[Pair]:
    """Read preference pairs, in any recognised layout.

    Args:
        source: a `.jsonl`, `.json`, `.csv` or `.parquet` file (each also with `.gz`), a folder
            written by `Dataset.save_to_disk`, a `datasets.Dataset`, a list of dicts, or the id
            of a dataset on the hub, such as `owner/name`, when no such path exists.
        strict: raise when any row is refused, instead of counting it.
        split: which split to take, where the source has several.

    Returns:
        The pairs, with every row that was left out.

    Raises:
        DataError: when nothing can be read, no row is usable, or `strict` and a row is refused.
        OtherKindError: a `DataError`, when the source holds labels of single completions.
        MissingDataError: a `DataError` and a `FileNotFoundError`, when the path does not exist.
        TypeError: when the source is of another type.
    """
    found = read_rows(source, split, _PAIRS, other=labels.recognise_label)
    _require_known_layout(found, source, split)
    if found.other:
        raise OtherKindError(
            f"{found.name} holds labels of single completions (layout: {found.other.name}), not "
            "pairs; train on them with method kto, or pair up the desirable and undesirable "
            f"completions of each prompt: penchant data convert {as_argument(source)} "
            "--to pairs --output pairs.jsonl"
        )
    return require_usable(found, _PAIRS, strict)


def read_labels(
    source: Source, *, strict: bool = False, split: str = "train", unpair: bool = False
) -> Data[Label]:
    """Read completions that were each judged good or bad, in any recognised layout.

    Args:
        source: anything that `read_pairs` takes.
        strict: raise when any row is refused, instead of counting it.
        split: which split to take, where the source has several.
        unpair: read a source of pairs as well, each pair as two labels, the desirable first.

    Returns:
        The labels, with every row that was left out.

    Raises:
        DataError: when nothing can be read, no row is usable, all labels are of one class, or
            `strict` and a row is refused.
        OtherKindError: a `DataError`, when the source holds pairs and `unpair` is not set.
        MissingDataError: a `DataError` and a `FileNotFoundError`, when the path does not exist.
        TypeError: when the source is of another type.
    """
    kind = _EITHER if unpair else _LABELS
    found = read_rows(source, split, kind, other=formats.recognise)
    _require_known_layout(found, source, split)
    if found.other:
        raise OtherKindError(
            f"{found.name} holds pairs (layout: {found.other.name}), not labels of single "
            "completions; set unpair to read each pair as two labels, or write them to a file: "
            f"penchant data convert {as_argument(source)} --to labels --output labels.jsonl"
        )
    read = require_usable(found, kind, strict)
    judged = [one for r in read.records for one in ([r] if isinstance(r, Label) else r.labels())]
    _require_both_classes(judged, found.name)
    return Data(judged, read.refused, read.layout, read.source, read.ties)


# Rows to records


@dataclass(frozen=True)
class Kind(Generic[R]):
    """What rows are read as.

    Args:
        name: how messages call one record.
        layouts: those that `recognise` tells apart.
        recognise: the layout of a row, or None.
        convert: makes a record of a row, given the layout of the rows before and its place;
            None for a tie.
    """

    name: str
    layouts: tuple[Layout, ...]
    recognise: Callable[[object], Layout | None]
    convert: Callable[[object, Layout | None, str], R | None]


@dataclass
class Found(Generic[R]):
    """What a source turned out to hold; `other` where that is only the other kind of record."""

    name: str
    records: list[R] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    ties: int = 0
    layout: Layout | None = None
    other: Layout | None = None


def _recognise_either(row: object) -> Layout | None:
    return labels.recognise_label(row) or formats.recognise(row)


def _to_either(row: object, layout: Layout | None, where: str) -> Pair | Label | None:
    if (layout or _recognise_either(row)) in formats.LAYOUTS:
        return formats.to_pair(row, layout, where)
    return labels.to_label(row, layout, where)


_PAIRS: Kind[Pair] = Kind("preference pair", formats.LAYOUTS, formats.recognise, formats.to_pair)
_LABELS: Kind[Pair | Label] = Kind(
    "labelled completion", labels.LAYOUTS, labels.recognise_label, labels.to_label
)
_EITHER: Kind[Pair | Label] = Kind(
    "labelled completion or preference pair",
    labels.LAYOUTS + formats.LAYOUTS,
    _recognise_either,
    _to_either,
)


def read_rows(
    source: object,
    split: str,
    kind: Kind[R],
    *,
    other: Callable[[object], Layout | None] | None = None,
    prompts: bool = False,
) -> Found[R]:
    """Turn rows into records; the first row that fits a layout decides it for the rest.

    Args:
        source, split: as for `read_pairs`.
        kind: what rows are read as.
        other: recognises the layouts of another kind of record, for a hint where all rows are.
        prompts: open the source for its prompts, as `open_source` does.
    """
    name, items = open_source(source, split, prompts=prompts)
    found = Found[R](name)
    for item in items:
        if isinstance(item, Refusal):
            found.refused.append(item)
            continue
        where, row = item
        found.layout = found.layout or kind.recognise(row)
        if other and not found.layout:
            found.other = found.other or other(row)
        try:
            record = kind.convert(row, found.layout, where)
        except RowError as error:
            found.refused.append(Refusal(where, error.reason, error.detail))
            continue
        if record is None:
            found.ties += 1
        else:
            found.records.append(record)
    if found.layout:
        found.other = None
    return found


def require_usable(found: Found[R], kind: Kind[R], strict: bool) -> Data[R]:
    """Return what was read; refuse a source without a record, or when strict with a refusal."""
    if not found.records or found.layout is None:
        raise _nothing_usable(found, kind)
    if strict and found.refused:
        shown = "\n".join(f"  {refusal}" for refusal in found.refused[:NUM_EXAMPLES])
        raise DataError(
            f"strict allows no refusal, and {found.name} has "
            f"{counted(len(found.refused), 'refused row')}; "
            f"correct or remove what is refused. The first:\n{shown}"
        )
    return Data(found.records, found.refused, found.layout.name, found.name, found.ties)


def _require_known_layout(found: Found[R], source: object, split: str) -> None:
    """Refuse raw feedback and other projects' layouts by name, with the command to run."""
    if found.records or found.ties:
        return
    # Layouts of raw feedback and of other projects are known to this module alone.
    from penchant.data.hints import hint

    if (command := hint(source, split)) is not None:
        raise DataError(f"no row of {found.name} can be trained on: {command}")


def _nothing_usable(found: Found[R], kind: Kind[R]) -> DataError:
    if not found.refused and not found.ties:
        return DataError(f"{found.name} holds no rows; give data with at least one {kind.name}")
    layouts = "\n".join(f"  {layout.name}" for layout in kind.layouts)
    ties = f", {counted(found.ties, 'tie')}" if found.ties else ""
    return DataError(
        f"no row of {found.name} is a {kind.name}: {len(found.refused)} refused{ties}\n"
        f"{describe_refusals(found.refused)}\n"
        f"recognised layouts:\n{layouts}"
    )


def _require_both_classes(judged: list[Label], name: str) -> None:
    classes = {label.desirable for label in judged}
    if len(classes) == 1:
        only, lacking = (
            ("desirable", "undesirable") if True in classes else ("undesirable", "desirable")
        )
        raise DataError(
            f"{name} has {counted(len(judged), 'label')}, all of them {only}; both classes are "
            f"needed, so add {lacking} completions"
        )
