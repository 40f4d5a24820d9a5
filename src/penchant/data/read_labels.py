"""Read labels, or make them of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penchant.data.opening import Sources
from penchant.data.read import read_rows
from penchant.data.records import Data, DataError, Label, counted

if TYPE_CHECKING:
    from penchant.data.opening import Source


def read_labels(
    source: Source,
    *,
    strict: bool = False,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    unpair: bool = False,
) -> Data[Label]:
    """Read completions that were each judged good or bad, in any recognised layout.

    Args:
        source, strict, split, columns: as for `read_pairs`.
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
    from penchant.data.rows.labels import EITHER, LABELS

    read = read_rows(Sources.of(source, split, columns), EITHER if unpair else LABELS, strict)
    judged = [one for r in read.records for one in ([r] if isinstance(r, Label) else r.labels())]
    _require_both_classes(judged, read.source)
    return Data(judged, read.refused, read.layouts, read.source, read.ties)


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
