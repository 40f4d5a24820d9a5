"""What is made of the rows that can be used; the others are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from penchant.data.records import DataError, Refusal, counted
from penchant.data.rows.row import RowError
from penchant.data.tally import Tally

Made = TypeVar("Made")


def usable(
    items: Iterable[tuple[str, object] | Refusal],
    refused: Tally,
    make: Callable[[str, object], Made],
) -> Iterator[Made]:
    """What is made of each row, with its place; what cannot be is counted among the refused.

    Args:
        items: places with their rows, or what reading has refused.
        refused: counts the refusals.
        make: takes a place and its row; raises `RowError` where the row cannot be used.
    """
    for item in items:
        if isinstance(item, Refusal):
            refused.add(item)
            continue
        where, row = item
        try:
            made = make(where, row)
        except RowError as error:
            refused.add(Refusal(where, error.reason, error.detail))
        else:
            yield made


def require_none(refused: Tally, name: str) -> None:
    """Refuse what is named if anything of it was refused.

    Raises:
        DataError: something was; it is described.
    """
    if refused:
        number = counted(len(refused), "refused row")
        raise DataError(
            f"strict allows no refusal, and {name} has {number}; correct or remove what is "
            f"refused\n{refused.describe()}"
        )
