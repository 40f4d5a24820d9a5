"""Pairs from several completions of a prompt that are rated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from penchant.data.building.lists import listed, models_of, require_as_many
from penchant.data.building.rules import Counts, Form, Placed, Rows, Rules, answer, need, pair
from penchant.data.cells import TEXTS
from penchant.data.names import RATINGS
from penchant.data.rows.row import Row, RowError, is_given, kind, shown

# What an object says of its completion: a rating, or whether somebody took it.
ORDERED = (*RATINGS, "scores", "ratings", "annotations", "selected", "is_selected", "is_chosen",
           "chosen", "preferred", "accepted", "is_best")  # fmt: skip
RATED_BY = {*ORDERED}
OVERALL = ("overall", "overallscore", "score", "rating", "total", "mean", "average")
SEVERAL_ASPECTS = "scores of several aspects"
HELPFUL = "helpfulness"
BETTER_IF_HIGHER = {
    *(
        HELPFUL,
        "helpful",
        "honest",
        "honesty",
        "truthful",
        "truthfulness",
        "harmless",
        "harmlessness",
    ),
    *("correct", "correctness", "coherent", "coherence", "accuracy", "quality", "relevance"),
    *("instructionfollowing", "faithfulness", "factuality", "clarity", "fluency"),
}


class Scored(NamedTuple):
    """A completion with its score (more is better), and who wrote it where that is known."""

    text: object
    score: float
    model: str | None = None


class _Given(NamedTuple):
    """A completion as a row gives it: its text, its rating, who wrote it, where the rating is."""

    text: object
    rating: object
    model: object
    path: str


def _is_ratings(row: Row, rules: Rules) -> bool:
    if is_given(row, "completions"):
        return is_given(row, "ratings") or _lists_objects(row)
    # A single score of 0 or 1 (Langfuse) is read under both names: it is a thumb at first.
    thumb = row.get("rating") == row.get("label")
    return all(is_given(row, name) for name in ("prompt", "completion", "rating")) and not thumb


def _lists_objects(row: Row) -> bool:
    texts = row.get("completions")
    if isinstance(texts, Mapping):
        texts = list(texts.values())
    if not isinstance(texts, list | tuple):
        return False
    return any(isinstance(one, Mapping) and not RATED_BY.isdisjoint(one) for one in texts)


def by_prompt(row: Row, rules: Rules) -> object:
    """The prompt where each row is one completion; a row with several is a unit of its own."""
    need(row, rules, "prompt")
    return None if is_given(row, "completions") else [row["prompt"]]


def _from_ratings(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, first = unit[0]
    if is_given(first, "completions"):
        given = _listed(first, rules)
    else:
        path = rules.name("rating")
        given = [
            _Given(row.get("completion"), row.get("rating"), row.get("model"), path)
            for _, row in unit
        ]
    _require_one_measure(given)
    entries = [(one.text, _overall(one.rating, one.path, counts), one.model) for one in given]
    # True for correct is a rating where all are told so; among numbers it is a slip.
    flags = all(isinstance(value, bool) for _, value, _ in entries)
    scored = []
    for text, rating, model in entries:
        value = int(bool(rating)) if flags else rating
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


def _listed(row: Row, rules: Rules) -> list[_Given]:
    """Each completion of a row: objects, or lists side by side."""
    texts = listed(row, "completions", rules)
    authors = models_of(row, len(texts))
    if not is_given(row, "ratings"):
        entries = zip((_entry(one, rules) for one in texts), authors, strict=True)
        return [one._replace(model=one.model or author) for one, author in entries]
    ratings = listed(row, "ratings", rules)
    require_as_many(texts, ratings, "ratings", rules)
    texts = [text_of(o) if isinstance(o, Mapping) and kind(o) is None else o for o in texts]
    every = zip(texts, ratings, authors, strict=True)
    return [_Given(*one, rules.name("ratings")) for one in every]


def _entry(one: object, rules: Rules) -> _Given:
    if not isinstance(one, Mapping):
        name = rules.name("completions")
        raise RowError("wrong type", f"'{name}' must hold objects with a rating, got {shown(one)}")
    key = next((key for key in ORDERED if one.get(key) is not None), "")
    path = f"{rules.name('completions')}.{key}"
    return _Given(text_of(one), one.get(key), one.get("model"), path)


def text_of(one: Mapping[str, object]) -> object:
    """The text of an object that stands for a completion; None where it has none."""
    return next((one[key] for key in TEXTS if one.get(key) is not None), None)


def _require_one_measure(given: Sequence[_Given]) -> None:
    """Refuse completions of one prompt whose ratings are of different things."""
    measures = {
        ", ".join([one.path, *_counting(one.rating)]): None
        for one in given
        if one.rating is not None
    }
    if len(measures) > 1:
        raise RowError(
            "scores of different aspects",
            f"completions of one prompt are scored by {' and by '.join(measures)}; give all of "
            "them the same",
        )


def _counting(rating: object) -> list[str]:
    """Which aspects of a rating count, of those that `_overall` takes; empty for a number."""
    if not isinstance(rating, Mapping):
        return []
    names = {_squeezed(name) for name in rating}
    if overall := next((name for name in OVERALL if name in names), None):
        return [overall]
    return [HELPFUL] if HELPFUL in names and not names <= BETTER_IF_HIGHER else sorted(names)


def _squeezed(name: object) -> str:
    return re.sub(r"[\W_]", "", str(name).lower())


def _overall(rating: object, path: str, counts: Counts) -> object:
    """The score of a completion that has one for each of several aspects.

    That is the overall one; or the mean, where each aspect is known to be better the higher it is;
    or helpfulness beside aspects that are not (HelpSteer).

    Raises:
        RowError: neither is there.
    """
    if not isinstance(rating, Mapping):
        return rating
    scores = {str(name): _innermost(value) for name, value in rating.items()}
    by_name = {_squeezed(name): name for name in scores}
    counting = _counting(rating)
    if len(counting) == 1 and counting[0] in {*OVERALL, HELPFUL}:
        return scores[by_name[counting[0]]]
    if not scores or not by_name.keys() <= BETTER_IF_HIGHER:
        aspects, first = ", ".join(scores) or "nothing", next(iter(scores), "NAME")
        raise RowError(
            SEVERAL_ASPECTS,
            f"a completion is scored by {aspects}, and not all of these are known to be better the "
            f"higher they are; name the one that counts, such as --columns ratings={path}.{first}",
        )
    numbers = [_number(value) for value in scores.values()]
    if any(math.isnan(one) for one in numbers):
        return math.nan
    counts[f"completions rated by the mean of {', '.join(scores)}"] += 1
    return sum(numbers) / len(numbers)


def _innermost(value: object) -> object:
    """The rating that an object of an aspect holds beside its reason (UltraFeedback)."""
    if not isinstance(value, Mapping):
        return value
    own = {str(name).lower(): one for name, one in value.items()}
    return next((own[name] for name in RATINGS if name in own), None)


def _number(value: object) -> float:
    """A rating as a number; NaN where it is none."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _rating(value: object, rules: Rules, counts: Counts) -> float:
    if value is None:
        raise RowError("rating missing", "a completion has no rating")
    score = _number(value)
    if not math.isfinite(score):
        raise RowError("rating that is no number", f"{shown(value)} is no finite number")
    counts["ratings given as text, read as numbers"] += isinstance(value, str)
    if rules.rating_range and not rules.rating_range[0] <= score <= rules.rating_range[1]:
        low, high = rules.rating_range
        raise RowError("rating out of range", f"{score:g} is not from {low:g} to {high:g}")
    return score


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
    by_prompt,
)
