"""Read pairs or labels from a file, a saved or loaded dataset, a list, or the Hugging Face hub.

A row that cannot be used is refused and counted, with its line; a source that cannot be used at
all raises `DataError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from penchant.data.opening import Part, Sources
from penchant.data.records import (
    Data,
    DataError,
    Pair,
    Record,
    Refusal,
    counted,
)
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Kind, Layout, RowError

if TYPE_CHECKING:
    from penchant.data.opening import Source

R = TypeVar("R", bound=Record)


class OtherKindError(DataError):
    """The source holds labels where pairs are wanted, or the reverse."""


def read_pairs(
    source: Source,
    *,
    strict: bool = False,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Data[Pair]:
    """Read preference pairs, in any recognised layout.

    Args:
        source: a file (JSON Lines, JSON, CSV or Parquet, each also compressed by gzip), a folder
            of files or one written by `Dataset.save_to_disk`, a pattern such as `data/*.jsonl`, a
            `datasets.Dataset`, a list of dicts, the id of a dataset on the hub, such as
            `owner/name`, when no such path exists; or a list of any of these, in whose order
            they are read.
        strict: raise when any row is refused, instead of counting it.
        split: which split to take, where a source has several.
        columns: the source's own name of a column, by the name used here, such as
            `{"chosen": "better"}`.

    Returns:
        The pairs, with every row that was left out.

    Raises:
        DataError: when nothing can be read, no row of a file is usable, or `strict` and a row is
            refused.
        OtherKindError: a `DataError`, when a source holds labels of single completions.
        MissingDataError: a `DataError` and a `FileNotFoundError`, when the path does not exist.
        TypeError: when the source is of another type.
    """
    return read_rows(Sources.of(source, split, columns), PAIRS, strict)


# Rows to records


def _recognise_label(row: object) -> Layout | None:
    from penchant.data.rows.labels import recognise_label

    return recognise_label(row)


PAIRS: Kind[Pair] = Kind(
    "preference pair",
    formats.LAYOUTS,
    formats.recognise,
    formats.to_pair,
    _recognise_label,
    "holds labels of single completions (layout: {layout}), not pairs; train on them with method "
    "kto, or pair up the desirable and undesirable completions of each prompt: penchant data "
    "convert {source} --to pairs --output pairs.jsonl",
)


def read_rows(sources: Sources, kind: Kind[R], strict: bool) -> Data[R]:
    """Turn rows into records.

    Args:
        sources: what is read, part by part.
        kind: what rows are read as.
        strict: raise when any row is refused.

    Raises:
        DataError: there are no rows, none of a part is usable, or `strict` and one is refused.
        OtherKindError: a part holds records of another kind.
    """
    records: list[R] = []
    refused: list[Refusal] = []
    layouts: dict[str, None] = {}
    ties = 0
    for part in sources.parts:
        read = _read_part(part, sources, kind)
        records += read.records
        refused += read.refused
        ties += read.ties
        layouts |= dict.fromkeys(read.layouts)
    if not records:
        rows = f"only {counted(ties, 'tie')}" if ties else "no rows"
        raise DataError(f"{sources.name} holds {rows}; give data with at least one {kind.name}")
    if strict and refused:
        from penchant.data.tally import NUM_EXAMPLES

        shown = "\n".join(f"  {refusal}" for refusal in refused[:NUM_EXAMPLES])
        raise DataError(
            f"strict allows no refusal, and {sources.name} has "
            f"{counted(len(refused), 'refused row')}; "
            f"correct or remove what is refused. The first:\n{shown}"
        )
    return Data(records, refused, tuple(layouts), sources.name, ties)


def _addressed(detail: str, sources: Sources) -> str:
    """A detail whose commands name the sources."""
    return detail.replace(" FILE ", f" {sources.argument} ") if " FILE " in detail else detail


def _read_part(part: Part, sources: Sources, kind: Kind[R]) -> Data[R]:
    """The records of one part; its first row that fits a layout decides it for the rest."""
    records: list[R] = []
    refused: list[Refusal] = []
    ties = 0
    layout: Layout | None = None
    other: Layout | None = None
    for item in part.rows(None):
        if isinstance(item, Refusal):
            refused.append(item)
            continue
        where, row = item
        layout = layout or kind.recognise(row)
        try:
            record = kind.convert(row, layout, where)
        except RowError as error:
            refused.append(Refusal(where, error.reason, _addressed(error.detail, sources)))
            other = other or (kind.other(row) if kind.other else None)
            continue
        if record is None:
            ties += 1
        else:
            records.append(record)
    if refused and not records and not ties:
        name = part.name if len(sources.parts) > 1 else sources.name
        # What hints try out reads data itself.
        from penchant.data.hints import hint

        hinted = layout is None or kind.rewritten
        if hinted and (suggestion := hint(sources, part, kind)):
            raise DataError(f"no row of {name} can be read as it is: {suggestion}")
        if layout is None and other:
            advice = kind.advice.format(layout=other.name, source=sources.argument)
            raise OtherKindError(f"{name} {advice}")
        from penchant.data.tally import describe_refusals

        known = "\n".join(f"  {layout.name}" for layout in kind.layouts)
        raise DataError(
            f"no row of {name} is a {kind.name}: {len(refused)} refused\n"
            f"{describe_refusals(refused)}\nrecognised layouts:\n{known}"
        )
    return Data(records, refused, (layout.name,) if layout else (), part.name, ties)
