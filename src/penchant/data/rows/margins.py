"""How clear a preference was: the margin between two ratings, and the agreement of votes."""

from __future__ import annotations

import math

from penchant.data.rows.row import Row, RowError, is_given, shown

RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
NUMBER_FIELDS = ("margin", "agreement", *(field for ratings in RATINGS for field in ratings))
FIELDS = (*NUMBER_FIELDS, "votes")
SIDES = ("a", "b", "tie")


def read_margin(row: Row) -> float | None:
    """Read by how much chosen was found better.

    Args:
        row: a `margin`, or else the ratings of both completions, whose difference it is.

    Returns:
        The margin, or None where the row does not say.

    Raises:
        RowError: when a number is none, or the margin is negative.
    """
    if is_given(row, "margin"):
        margin = _number(row, "margin")
        if margin < 0:
            raise _negative(f"'margin' is {margin:g}")
        return margin
    for fields in RATINGS:
        if all(is_given(row, field) for field in fields):
            chosen, rejected = (_number(row, field) for field in fields)
            if chosen < rejected:
                raise _negative(f"'{fields[0]}' is {chosen:g} and '{fields[1]}' {rejected:g}")
            return chosen - rejected
    return None


def read_agreement(row: Row, label: str | None = None) -> float | None:
    """Tell which share of several votes agrees with a row's preference, where it says.

    Args:
        row: an `agreement` above 0 and at most 1, or else a list of `votes`.
        label: the side that is preferred, where votes name sides.
    """
    share = row.get("agreement")
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1:
        return float(share)
    votes = row.get("votes")
    if label is None or not isinstance(votes, list | tuple) or not votes:
        return None
    sides = [read_side(vote) for vote in votes]
    return None if None in sides else sides.count(label) / len(sides)


def read_side(value: object) -> str | None:
    """Read a verdict: a, b or tie, in any case; None for anything else."""
    side = value.strip().lower() if isinstance(value, str) else None
    return side if side in SIDES else None


def _number(row: Row, field: str) -> float:
    value = row[field]
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number):
        raise RowError(
            "wrong type",
            f"'{field}' must be a finite number, or null where none is known, got {shown(value)}",
        )
    return number


def _negative(value: str) -> RowError:
    return RowError(
        "negative margin",
        f"{value}, as if rejected were the better; swap the completions or correct the number",
    )
