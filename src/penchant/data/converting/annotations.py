"""Exports of annotation tools, as rows of the forms that `data build` knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penchant.data.converting.comparisons import turns
from penchant.data.converting.exchange import NewRow
from penchant.data.names import own_name, sides
from penchant.data.rows.row import Row, RowError


def label_studio(row: Row) -> NewRow:
    """An export of Label Studio: the task's data, and a choice by each annotator."""
    data: Any = row["data"]
    given: Any = row["annotations"]
    votes = [_choice(one) for one in given if not one.get("was_cancelled")]
    both = sides(data)
    asked = next((data[name] for name in own_name(data, "prompt")), None)
    if both is None or asked is None:
        lacking = "two answers, such as response_a and response_b" if both is None else "prompt"
        raise RowError("missing field", f"'data' has no {lacking} (it has: {', '.join(data)})")
    read = turns(lambda _: {"label": "tie"})(
        {"prompt": asked, "response_a": data[both[0]], "response_b": data[both[1]]}
    )
    read.pop("label")
    meant = dict(zip(both, ("a", "b"), strict=True))
    return {**read, "votes": [meant.get(vote, vote) for vote in votes if vote is not None]}


def _choice(annotation: Mapping[str, Any]) -> str | None:
    """The first choice that an annotation holds, or the side that a comparison selects."""
    for result in annotation.get("result", ()):
        value = result.get("value", {})
        choices = value.get("choices") or [value.get("selected")]
        if choices[0] is not None:
            return str(choices[0])
    return None


def argilla(row: Row) -> NewRow:
    """An export of Argilla: the fields, and a ranking of their names by each annotator."""
    fields: Any = row["fields"]
    given = _responses(row["responses"])
    rankings = [one for one in given if isinstance(one, list)]
    if not rankings:
        return _selected(fields, [one for one in given if isinstance(one, str)])
    places: dict[str, list[float]] = {}
    for ranking in rankings:
        for one in ranking:
            places.setdefault(str(one["value"]), []).append(float(one["rank"]))
    means = {name: sum(ranks) / len(ranks) for name, ranks in places.items()}
    order = sorted(set(means.values()))
    return {
        "prompt": _asked(fields),
        "completions": [fields[name] for name in means],
        "ranks": [order.index(mean) + 1 for mean in means.values()],
    }


def _selected(fields: Mapping[str, Any], chosen: Sequence[str]) -> NewRow:
    """Two fields, and what each annotator chose of them."""
    both = sides(fields)
    if both is None or not chosen:
        raise RowError(
            "no ranking", "'responses' must rank the fields, or name the better of two of them"
        )
    meant = {both[0]: "a", both[1]: "b"}
    answers = {"completion_a": fields[both[0]], "completion_b": fields[both[1]]}
    return {"prompt": _asked(fields), **answers, "votes": [meant.get(one, one) for one in chosen]}


def _asked(fields: Mapping[str, Any]) -> Any:
    return next((fields[name] for name in own_name(fields, "prompt")), None)


def _responses(responses: Any) -> list[Any]:
    """What each annotator gave, in the export of Argilla 1 or 2."""
    if isinstance(responses, Mapping):
        return [one["value"] for given in responses.values() for one in given]
    return [
        given["value"] for one in responses for given in (one.get("values") or one).values()
        if isinstance(given, Mapping) and "value" in given
    ]  # fmt: skip
