"""Read what is to be compared: pairs in any layout, without what is known of their preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from penchant.data.opening import Sources
from penchant.data.read import read_rows
from penchant.data.records import Data, Pair
from penchant.data.rows import labels, margins
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Kind, Layout


def read_comparisons(sources: Sources, *, strict: bool = False) -> Data[Pair]:
    """Read pairs of completions; rows labelled a tie and rows without a label are pairs as well.

    Args:
        sources: anything that `read_pairs` takes.
        strict: raise when any row is refused, instead of counting it.

    Returns:
        The pairs; `chosen` is completion a and `rejected` completion b, whichever is preferred.

    Raises:
        DataError: as `read_pairs` does.
    """
    read = read_rows(sources, _COMPARISONS, strict)
    return replace(read, layouts=tuple(name.replace(", label", "") for name in read.layouts))


def _unjudged(row: object) -> object:
    """A row under a label that leaves completion a and b in their places, unrated.

    All else stays: a part of the prompt that stands beside it is refused, and is never lost.
    """
    if not isinstance(row, Mapping):
        return row
    return {**{k: v for k, v in row.items() if k not in margins.FIELDS}, "label": "a"}


def _recognise(row: object) -> Layout | None:
    return formats.recognise(_unjudged(row))


def _to_pair(row: object, layout: Layout | None, where: str) -> Pair | None:
    return formats.to_pair(_unjudged(row), layout, where)


_COMPARISONS: Kind[Pair] = Kind(
    "pair of completions",
    formats.LAYOUTS,
    _recognise,
    _to_pair,
    labels.recognise_label,
    "holds single completions (layout: {layout}); to compare, a row needs two: prompt, "
    "completion_a, completion_b",
)
