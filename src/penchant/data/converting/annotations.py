"""Exports of tools that annotate, as rows of the forms that `data build` knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from penchant.data.converting.comparisons import turns
from penchant.data.converting.exchange import NewRow
from penchant.data.names import own_name, plain_name, sides
from penchant.data.rows.row import Row, RowError, shown

# Label Studio


def label_studio(row: Row) -> NewRow:
    """An export of Label Studio: the task's data, and a choice by each annotator."""
    data: Any = row["data"]
    given: Any = row["annotations"]
    values = [_value(one) for one in given if not one.get("was_cancelled")]
    if orders := [order for value in values for order in _orders(value)]:
        return {"prompt": _asked(data), **_ordered(_items(data), orders)}
    if scores := [value["rating"] for value in values if "rating" in value]:
        return _rated(data, scores)
    votes = [_choice(value) for value in values]
    both = sides(data)
    asked = _asked(data)
    if both is None or asked is None:
        lacking = "two answers, such as response_a and response_b" if both is None else "prompt"
        raise RowError("missing field", f"'data' has no {lacking} (it has: {', '.join(data)})")
    read = turns(lambda _: {"label": "tie"})(
        {"prompt": asked, "response_a": data[both[0]], "response_b": data[both[1]]}
    )
    read.pop("label")
    meant = dict(zip(both, ("a", "b"), strict=True))
    return {**read, "votes": [meant.get(vote, vote) for vote in votes if vote is not None]}


def _value(annotation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first result of an annotation that judges, which a comment does not."""
    values = (result.get("value") or {} for result in annotation.get("result", ()))
    return next((one for one in values if not JUDGING.isdisjoint(one)), {})


def _choice(value: Mapping[str, Any]) -> str | None:
    """The first choice of a value, or the side that a comparison selects."""
    choices = value.get("choices") or [value.get("selected")]
    return None if choices[0] is None else str(choices[0])


def _orders(value: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The order, best first, into which a ranker was put.

    Raises:
        RowError: it sorts into several buckets, of which nothing says which is the better one.
    """
    ranked = value.get("ranker")
    lists = dict(ranked) if isinstance(ranked, Mapping) else {"rank": ranked}
    filled = {n: list(one) for n, one in lists.items() if isinstance(one, list | tuple) and one}
    if len(filled) > 1:
        filled.pop(NOT_SORTED, None)
    if len(filled) > 1:
        raise RowError(
            "several buckets",
            f"items are sorted into {', '.join(filled)}, and nothing says which of these is the "
            "better one; rank the items in one list",
        )
    yield from filled.values()


def _items(data: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of the items to rank, by their ids."""
    for value in data.values():
        objects = value if isinstance(value, list | tuple) else ()
        if objects and all(isinstance(one, Mapping) and "id" in one for one in objects):
            return {str(o["id"]): next((o[t] for t in ITEM if o.get(t)), None) for o in objects}
    raise RowError("missing field", f"'data' has no list of items to rank (it has: {list(data)})")


JUDGING = {"choices", "selected", "rating", "ranker"}
ITEM = ("body", "text", "html", "title")
# The list of a ranker with buckets whose items were put into none.
NOT_SORTED = "_"

# Argilla


def argilla(row: Row) -> NewRow:
    """An export of Argilla: the fields, and what each annotator said of them."""
    fields: Any = row["fields"]
    given = _responses(row["responses"])
    if orders := [one for one in given if isinstance(one, list | tuple)]:
        return {"prompt": _asked(fields), **_ordered(fields, orders)}
    if scores := [one for one in given if isinstance(one, int | float)]:
        return _rated(fields, scores)
    return _selected(fields, [one for one in given if isinstance(one, str)])


def argilla_table(row: Row) -> NewRow:
    """Records of Argilla 2 as a table: fields, and a column of responses for each question.

    Raises:
        RowError: the column of statuses has not one for each response.
    """
    responses: dict[str, list[NewRow]] = {}
    for name, values in _answered(row):
        states: Any = row.get(f"{name}.status") or [None] * len(values)
        if len(states) != len(values):
            raise RowError(
                "uneven numbers",
                f"'{name}.status' must have a status for each of '{name}': {len(values)}, got "
                f"{len(states)}",
            )
        both = zip(values, states, strict=True)
        responses[name] = [{"value": value, "status": status} for value, status in both]
    fields = {name: value for name, value in row.items() if "." not in str(name)}
    return argilla({"fields": fields, "responses": responses})


def is_argilla_table(row: Row) -> bool:
    """Whether a row has a column of responses, as `preference.responses`."""
    return any(True for _ in _answered(row))


def _answered(row: Row) -> Iterator[tuple[str, list[Any]]]:
    for name, value in row.items():
        if str(name).endswith(".responses") and isinstance(value, list | tuple) and value:
            yield str(name), list(value)


def _responses(responses: Any) -> list[Any]:
    """What each annotator gave and submitted, in the export of Argilla 1 or 2.

    Raises:
        RowError: nobody submitted anything, or several questions are answered by numbers or by
            rankings, which do not add up.
    """
    asked: dict[str, list[Any]] = {}
    if isinstance(responses, Mapping):
        for name, given in responses.items():
            asked[str(name)] = [one["value"] for one in given if _submitted(one)]
    else:
        for one in filter(_submitted, responses):
            for name, given in (one.get("values") or one).items():
                if isinstance(given, Mapping) and "value" in given:
                    asked.setdefault(str(name), []).append(given["value"])
    if not any(asked.values()):
        raise RowError(
            "not answered",
            "'responses' holds nothing that was submitted (drafts and what was discarded do not "
            "count); answer it in Argilla, or leave it out",
        )
    judging = [n for n, given in asked.items() if not all(isinstance(v, str) for v in given)]
    if len(judging) > 1:
        raise RowError(
            "several questions",
            f"'responses' answers {', '.join(judging)}, and nothing says which of these counts; "
            "leave that one alone in 'responses'",
        )
    return [value for name in judging or asked for value in asked[name]]


def _submitted(response: Mapping[str, Any]) -> bool:
    """Whether an annotator stands by a response, which is no draft and was not discarded."""
    return response.get("status") in (None, "submitted")


# What several of them have


def _ordered(texts: Mapping[str, Any], orders: Iterable[Sequence[Any]]) -> NewRow:
    """Texts by name with their places, which are the means over several orders.

    Args:
        texts: by name.
        orders: of the names, best first; or objects with a name as `value` and its `rank`.

    Raises:
        RowError: an order names what is no text, or not the same texts as the others.
    """
    known = {plain_name(name): name for name in texts}
    places: dict[str, list[float]] = {}
    num_orders = 0
    for order in orders:
        num_orders += 1
        for number, one in enumerate(order, start=1):
            named, rank = (one["value"], one["rank"]) if isinstance(one, Mapping) else (one, number)
            if plain_name(named) not in known:
                raise RowError(
                    "unknown name", f"the ranking names {shown(named)}, none of {', '.join(texts)}"
                )
            places.setdefault(known[plain_name(named)], []).append(float(rank))
    if uneven := [name for name, ranks in places.items() if len(ranks) != num_orders]:
        raise RowError(
            "uneven rankings",
            f"{uneven[0]} is not in each of {num_orders} rankings once, so that their places "
            "cannot be averaged; rank the same texts in all of them",
        )
    means = {name: sum(ranks) / len(ranks) for name, ranks in places.items()}
    rising = sorted(set(means.values()))
    return {
        "completions": [texts[name] for name in means],
        "ranks": [rising.index(mean) + 1 for mean in means.values()],
    }


def _rated(fields: Mapping[str, Any], scores: Sequence[float]) -> NewRow:
    """One answer, and the mean of its ratings."""
    answer = next((fields[name] for name in own_name(fields, "completion")), None)
    if answer is None:
        raise RowError("missing field", f"no field is an answer (it has: {', '.join(fields)})")
    mean = sum(map(float, scores)) / len(scores)
    return {"prompt": _asked(fields), "completion": answer, "rating": mean}


def _selected(fields: Mapping[str, Any], chosen: Sequence[str]) -> NewRow:
    """Two fields, and what each annotator chose of them."""
    both = sides(fields)
    if both is None or not chosen:
        raise RowError(
            "no ranking", "'responses' must rank the fields, or name the better of two of them"
        )
    meant = {plain_name(both[0]): "a", plain_name(both[1]): "b"}
    answers = {"completion_a": fields[both[0]], "completion_b": fields[both[1]]}
    votes = [meant.get(plain_name(one), one) for one in chosen]
    return {"prompt": _asked(fields), **answers, "votes": votes}


def _asked(fields: Mapping[str, Any]) -> Any:
    return next((fields[name] for name in own_name(fields, "prompt")), None)


# Prodigy


def prodigy(row: Row) -> NewRow:
    """A choice among options in Prodigy: those accepted are better than the others."""
    if row.get("answer", "accept") != "accept":
        raise RowError("not answered", f"'answer' is {shown(row['answer'])}, so nothing is chosen")
    options: Any = row["options"]
    accepted: Any = row["accept"]
    ids = [one.get("id", number) for number, one in enumerate(options)]
    if unknown := [one for one in accepted if one not in ids]:
        raise RowError("unknown name", f"'accept' names {shown(unknown[0])}, none of {ids}")
    return {
        "prompt": next((row[name] for name in PRODIGY_TEXTS if row.get(name)), None),
        "completions": [one.get("text", one.get("html")) for one in options],
        "ranks": [1 if one in accepted else 2 for one in ids],
    }


PRODIGY_TEXTS = ("prompt", "question", "text", "html")


def is_prodigy(row: Row) -> bool:
    """Whether options stand beside those that were accepted."""
    options = row.get("options")
    objects = isinstance(options, list | tuple) and all(isinstance(o, Mapping) for o in options)
    return bool(options) and objects and isinstance(row.get("accept"), list | tuple)
