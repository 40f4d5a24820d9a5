"""Pairs from two completions and a verdict: one label, or the votes of several annotators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from penchant.data.building.rules import Counts, Form, Placed, Rows, Rules, answer, need, pair
from penchant.data.grouping import digest
from penchant.data.names import own_name
from penchant.data.rows.row import Row, RowError, is_given, shown

SIDES = ("completion_a", "completion_b")
STRENGTH = "strength"


def _has_sides(row: Row) -> bool:
    return all(is_given(row, column) for column in ("prompt", *SIDES))


def _is_labels(row: Row, rules: Rules) -> bool:
    return _has_sides(row) and is_given(row, "label") and not is_given(row, "annotator")


def _is_votes(row: Row, rules: Rules) -> bool:
    within = is_given(row, "votes") or any(is_given(row, name) for name in rules.votes)
    single = is_given(row, "annotator") and is_given(row, "label")
    return _has_sides(row) and (within or single)


def _from_label(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, row = unit[0]
    need(row, rules, "prompt", *SIDES, "label")
    side = rules.vote(cast(row["label"]), "label")
    texts = {name: answer(row[name], rules.name(name)) for name in SIDES}
    if side in ("tie", "both_bad"):
        counts[_left_out(side)] += 1
        return
    first, second = SIDES if side == "a" else SIDES[::-1]
    by = _strength(row)
    yield {**pair(row["prompt"], texts[first], texts[second], where, margin=by), "rule": "label"}


def _key(row: Row, rules: Rules) -> object:
    """The question asked, whichever completion stood on the left; a row with all votes is one."""
    need(row, rules, "prompt", *SIDES)
    if not is_given(row, "annotator"):
        return None
    rules.vote(cast(row.get("label")), "label")
    return [row["prompt"], sorted(digest(row[name]).hex() for name in SIDES)]


def _from_votes(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, first = unit[0]
    texts = {name: answer(first[name], rules.name(name)) for name in SIDES}
    votes: dict[str, str] = {}
    strengths: dict[str, float] = {}
    for number, (_, row) in enumerate(unit):
        swapped = row["completion_a"] != first["completion_a"]
        for annotator, vote in _votes(row, rules, counts).items():
            # Annotators without a name are told apart by their row and column.
            named = annotator if is_given(row, "annotator") else f"{number} {annotator}"
            counts["votes replaced by a later one of the same annotator"] += named in votes
            votes[named] = _other(vote) if swapped else vote
            strengths.pop(named, None)  # that of a vote which this one replaces
            if (strength := _strength(row)) is not None:
                strengths[named] = strength
    if not votes:
        raise RowError("no votes", "the row names no vote; give votes, or annotator and label")
    side, share = _verdict(list(votes.values()), rules, counts)
    if side is None:
        return
    chosen, rejected = SIDES if side == "a" else SIDES[::-1]
    agreeing = [
        strengths[name] for name, vote in votes.items() if vote == side and name in strengths
    ]
    margin = sum(agreeing) / len(agreeing) if agreeing else None
    # A single vote agrees with itself, which tells nothing.
    known = {"margin": margin, "agreement": share if len(votes) > 1 else None}
    yield {
        **pair(first["prompt"], texts[chosen], texts[rejected], where, **known),
        "num_votes": len(votes),
        "rule": f"votes, {_asked(rules)}",
    }


def _strength(row: Row) -> float | None:
    """How much better the preferred side is, where the row says."""
    value = row.get(STRENGTH)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return abs(float(value)) if number else None  # type: ignore[arg-type]


def _votes(row: Row, rules: Rules, counts: Counts) -> dict[str, str]:
    """Who voted for what in one row."""
    if is_given(row, "annotator") and is_given(row, "label"):
        return {str(row["annotator"]): rules.vote(cast(row["label"]), "label")}
    given = row.get("votes")
    if rules.votes:
        votes: Mapping[str, object] = {name: row.get(name) for name in rules.votes}
    elif isinstance(given, Mapping):
        votes = {str(name): vote for name, vote in given.items()}
    elif isinstance(given, list | tuple):
        votes = {str(number): cast(vote) for number, vote in enumerate(given, start=1)}
    else:
        got = shown(given)
        raise RowError("wrong type", f"'{rules.name('votes')}' must be a list or object, got {got}")
    counts["votes missing"] += sum(vote is None for vote in votes.values())
    columns = votes if rules.votes else dict.fromkeys(votes, "votes")
    return {
        name: rules.vote(vote, name if columns is votes else "votes")
        for name, vote in votes.items()
        if vote is not None
    }


def cast(vote: object) -> object:
    """The vote that an annotation is; of an object, the one field that votes have."""
    if not isinstance(vote, Mapping):
        return vote
    return next((vote[name] for name in own_name(vote, "label")), None)


def _verdict(votes: list[str], rules: Rules, counts: Counts) -> tuple[str | None, float]:
    """The side preferred, if any, and the share of votes for it."""
    ranked = Counter(votes).most_common(2)
    side, number = ranked[0]
    share = number / len(votes)
    if len(ranked) == 2 and ranked[1][1] == number:
        counts["pairs left out: votes evenly divided"] += 1
    elif side in ("tie", "both_bad"):
        counts[_left_out(side)] += 1
    # A share of 0.66 is met by two of three, as one would say it.
    elif rules.min_agreement is not None and share < rules.min_agreement - 1e-9:
        counts[f"pairs left out: agreement below {rules.min_agreement:g}"] += 1
    else:
        return side, share
    return None, share


def _left_out(side: str) -> str:
    return "pairs left out: tie" if side == "tie" else "pairs left out: both bad"


def _asked(rules: Rules) -> str:
    if rules.min_agreement is None:
        return "majority"
    least = rules.min_agreement
    return "unanimity" if least == 1 else f"agreement of at least {least:g}"


def _other(side: str) -> str:
    return {"a": "b", "b": "a"}.get(side, side)


LABELS = Form(
    "label",
    "prompt, completion_a, completion_b, label",
    _is_labels,
    _from_label,
    (*SIDES, STRENGTH),
)
VOTES = Form(
    "votes",
    "prompt, completion_a, completion_b with votes, or with label and annotator",
    _is_votes,
    _from_votes,
    (*SIDES, STRENGTH, "annotator"),
    _key,
)
