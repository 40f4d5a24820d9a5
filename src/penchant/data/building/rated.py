"""Pairs from several completions of a prompt, rated or ranked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from penchant.data.building.rules import Counts, Form, Placed, Rows, Rules, answer, need, pair
from penchant.data.names import RATINGS, TEXTS
from penchant.data.rows.row import Row, RowError, is_given, shown


class Scored(NamedTuple):
    """A completion with its score (more is better), and who wrote it where that is known."""

    text: object
    score: float
    model: str | None = None


def _is_ratings(row: Row, rules: Rules) -> bool:
    if is_given(row, "completions"):
        return is_given(row, "ratings") or _lists_objects(row)
    return all(is_given(row, name) for name in ("prompt", "completion", "rating"))


def _lists_objects(row: Row) -> bool:
    listed = row.get("completions")
    if not isinstance(listed, list | tuple):
        return False
    return any(isinstance(one, Mapping) and any(key in one for key in RATINGS) for one in listed)


def _is_ranking(row: Row, rules: Rules) -> bool:
    return is_given(row, "completions") and is_given(row, "ranks")


def _key(row: Row, rules: Rules) -> object:
    """The prompt where each row is one completion; a row with several is a unit of its own."""
    need(row, rules, "prompt")
    return None if is_given(row, "completions") else [row["prompt"]]


def _from_ratings(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, first = unit[0]
    if is_given(first, "completions"):
        entries = _listed(first, rules)
    else:
        entries = [(row.get("completion"), row.get("rating"), row.get("model")) for _, row in unit]
    # True for correct is a rating where all are told so; among numbers it is a slip.
    flags = all(isinstance(value, bool) for _, value, _ in entries)
    scored = []
    for text, given, model in entries:
        value = int(bool(given)) if flags else given
        try:
            score = _rating(value, rules, counts)
            completion = answer(text, rules.name("completion"))
        except RowError as error:
            counts[f"completions left out: {error.reason}"] += 1
            continue
        scored.append(Scored(completion, score, None if model is None else str(model)))
    if len(scored) < 2:
        raise RowError(
            "fewer than two rated completions",
            f"{len(scored)} of {len(entries)} has a usable rating and text, which makes no pair",
        )
    for better, worse in choose(scored, rules, counts, first["prompt"]):
        yield {
            **pair(
                first["prompt"], better.text, worse.text, where, margin=better.score - worse.score
            ),
            "score_chosen": better.score,
            "score_rejected": worse.score,
            **_models(better, worse),
            "rule": f"ratings, {rules.choice}",
        }


def _listed(row: Row, rules: Rules) -> list[tuple[object, object, object]]:
    """Text, rating and model of each completion of a row: objects, or lists side by side."""
    texts = _list(row, "completions", rules)
    if not is_given(row, "ratings"):
        return [_entry(one, rules) for one in texts]
    ratings = _list(row, "ratings", rules)
    _same_number(texts, ratings, "ratings", rules)
    models = row.get("models")
    known = models if isinstance(models, list | tuple) and len(models) == len(texts) else None
    return list(zip(texts, ratings, known or [None] * len(texts), strict=True))


def _entry(one: object, rules: Rules) -> tuple[object, object, object]:
    if not isinstance(one, Mapping):
        name = rules.name("completions")
        raise RowError("wrong type", f"'{name}' must hold objects with a rating, got {shown(one)}")
    text = next((one[key] for key in TEXTS if one.get(key) is not None), None)
    rating = next((one[key] for key in RATINGS if one.get(key) is not None), None)
    return text, rating, one.get("model")


def _rating(value: object, rules: Rules, counts: Counts) -> float:
    if value is None:
        raise RowError("rating missing", "a completion has no rating")
    score = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            score = float(value)
        except (ValueError, OverflowError):
            score = math.nan
    if not math.isfinite(score):
        raise RowError("rating that is no number", f"{shown(value)} is no finite number")
    counts["ratings given as text, read as numbers"] += isinstance(value, str)
    if rules.rating_range and not rules.rating_range[0] <= score <= rules.rating_range[1]:
        low, high = rules.rating_range
        raise RowError("rating out of range", f"{score:g} is not from {low:g} to {high:g}")
    return score


def _from_ranking(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, row = unit[0]
    need(row, rules, "prompt", "completions", "ranks")
    texts, ranks = _list(row, "completions", rules), _list(row, "ranks", rules)
    _same_number(texts, ranks, "ranks", rules)
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            name = rules.name("ranks")
            raise RowError(
                "rank out of range",
                f"'{name}' must be whole numbers from 1 (best), got {shown(rank)}",
            )
    if len(texts) < 2:
        raise RowError("fewer than two completions", "one completion makes no pair")
    name = rules.name("completions")
    scored = [Scored(answer(t, name), -float(str(r))) for t, r in zip(texts, ranks, strict=True)]
    for better, worse in choose(scored, rules, counts, row["prompt"]):
        yield {
            **pair(row["prompt"], better.text, worse.text, where),
            "rank_chosen": int(-better.score),
            "rank_rejected": int(-worse.score),
            "rule": f"ranking, {rules.choice}",
        }


def choose(
    scored: Sequence[Scored], rules: Rules, counts: Counts, prompt: object
) -> list[tuple[Scored, Scored]]:
    """Pairs of better and worse; what is too close or the same is counted.

    Args:
        scored: at least two.
        rules: which pairs to make, and the least gap.
        prompt: what the random choice depends on, beside the seed.
    """
    # The first of several that are equally good, so that the order of a source decides.
    best = max(scored, key=lambda one: one.score)
    if rules.choice == "all":
        ordered = [sorted(two, key=lambda one: -one.score) for two in combinations(scored, 2)]
        candidates = [(better, worse) for better, worse in ordered]
    elif rules.choice == "best_worst":
        candidates = [(best, min(scored, key=lambda one: one.score))]
    else:
        candidates = [(best, one) for one in scored if one is not best]
    kept = [two for two in candidates if _apart(*two, rules, counts)]
    if rules.choice == "best_random" and kept:
        return [rules.random(prompt).choice(kept)]
    return kept


def _apart(better: Scored, worse: Scored, rules: Rules, counts: Counts) -> bool:
    gap = better.score - worse.score
    if gap <= 0:
        counts["pairs left out: tie"] += 1
    elif gap < rules.min_gap:
        counts[f"pairs left out: gap below {rules.min_gap:g}"] += 1
    elif better.text == worse.text:
        counts["pairs left out: the same text with two scores"] += 1
    else:
        return True
    return False


def _list(row: Row, column: str, rules: Rules) -> Sequence[object]:
    value = row[column]
    if not isinstance(value, list | tuple):
        got = shown(value)
        raise RowError("wrong type", f"'{rules.name(column)}' must be a list, got {got}")
    return value


def _same_number(
    texts: Sequence[object], others: Sequence[object], name: str, rules: Rules
) -> None:
    if len(texts) != len(others):
        raise RowError(
            "uneven numbers",
            f"{len(texts)} in '{rules.name('completions')}' and {len(others)} in "
            f"'{rules.name(name)}'; give one for each completion",
        )


def _models(better: Scored, worse: Scored) -> dict[str, object]:
    if better.model is None or worse.model is None:
        return {}
    return {"model_chosen": better.model, "model_rejected": worse.model}


RATED = Form(
    "ratings",
    "prompt, completions with ratings beside or inside; or prompt, completion, rating",
    _is_ratings,
    _from_ratings,
    ("completions", "ratings", "models", "rating", "model"),
    _key,
)
RANKED = Form(
    "ranking",
    "prompt, completions, ranks (1 is best)",
    _is_ranking,
    _from_ranking,
    ("completions", "ranks"),
)
