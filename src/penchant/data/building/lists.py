"""Several completions of a row, with what stands beside each: lists, or objects by a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from penchant.data.building.rules import Rules
from penchant.data.rows.row import Row, RowError, shown

KEY = re.compile(r"(?:\D*\D)?(\d+)|(?:.*[^a-z])?([a-z])")


def listed(row: Row, column: str, rules: Rules) -> list[object]:
    """What a column has for each completion, in the order of the completions.

    A column may be a list, or an object by the completions' own keys, by the names of their models,
    or by numbers or letters that count them.

    Raises:
        RowError: it is neither, or its keys are those of other completions.
    """
    value = row[column]
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, Mapping):
        got = shown(value)
        raise RowError("wrong type", f"'{rules.name(column)}' must be a list, got {got}")
    keys = list(map(str, value))
    if column == "completions":
        return list(value.values())
    own = _keys(row["completions"], row.get("models"), keys)
    if own is None:
        raise RowError(
            "keys of other completions",
            f"'{rules.name(column)}' has {', '.join(keys)}, which do not say whose they are; give "
            f"one for each of '{rules.name('completions')}', in a list",
        )
    by_key = {str(key): one for key, one in value.items()}
    return [by_key[key] for key in own]


def models_of(row: Row, num: int) -> list[object]:
    """Who wrote each of `num` completions; None where that is not known."""
    texts, models = row["completions"], row.get("models")
    if isinstance(texts, Mapping):
        return list(texts)
    known = isinstance(models, list | tuple) and len(models) == num
    return list(models) if known else [None] * num  # type: ignore[call-overload]


def _keys(texts: object, models: object, keys: Sequence[str]) -> list[str] | None:
    """The keys of an object in the order of the completions; None where they do not fit."""
    own = list(map(str, texts)) if isinstance(texts, Mapping) else None
    if own is None and isinstance(models, list | tuple):
        own = list(map(str, models))
    if own is not None and {*own} == {*keys}:
        return own
    if isinstance(texts, Mapping):
        return None
    assert isinstance(texts, Sequence)
    places = {key: _place(key) for key in keys}
    in_order = sorted(keys, key=lambda key: places[key] or 0)
    counted = [places[key] for key in in_order]
    fits = len(keys) == len(texts) and any(
        counted == [*range(first, first + len(keys))] for first in (0, 1)
    )
    return in_order if fits else None


def _place(key: str) -> int | None:
    """The number at the end of a key, or the place of the letter there, from 1."""
    ending = KEY.fullmatch(key.strip().lower())
    if ending is None:
        return None
    return int(ending[1]) if ending[1] else ord(ending[2]) - ord("a") + 1


def require_as_many(
    texts: Sequence[object], others: Sequence[object], name: str, rules: Rules
) -> None:
    """Refuse a row that has not one of something for each completion."""
    if len(texts) != len(others):
        raise RowError(
            "uneven numbers",
            f"{len(texts)} in '{rules.name('completions')}' and {len(others)} in "
            f"'{rules.name(name)}'; give one for each completion",
        )
