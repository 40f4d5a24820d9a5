"""Pairs from several completions of a prompt by their ranks, of which 1 is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penchant.data.building.lists import listed, require_as_many
from penchant.data.building.rated import RATED_BY, Scored, by_prompt, choose, text_of
from penchant.data.building.rules import Counts, Form, Placed, Rows, Rules, answer, need, pair
from penchant.data.rows.row import Row, RowError, is_given, shown

RANK = "rank"


def _is_ranking(row: Row, rules: Rules) -> bool:
    if is_given(row, "completions"):
        return is_given(row, "ranks") or _lists_ranked(row)
    return all(is_given(row, name) for name in ("prompt", "completion", RANK))


def _lists_ranked(row: Row) -> bool:
    texts = row["completions"]
    if not isinstance(texts, list | tuple):
        return False
    return bool(texts) and all(
        isinstance(one, Mapping) and RANK in one and RATED_BY.isdisjoint(one) for one in texts
    )


def _from_ranking(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, first = unit[0]
    need(first, rules, "prompt")
    column = "completions" if is_given(first, "completions") else "completion"
    if column == "completion":
        texts = [row.get(column) for _, row in unit]
        ranks = [row.get(RANK) for _, row in unit]
    elif is_given(first, "ranks"):
        texts, ranks = listed(first, column, rules), listed(first, "ranks", rules)
        require_as_many(texts, ranks, "ranks", rules)
    else:
        objects = listed(first, column, rules)
        if not _lists_ranked(first):
            got = shown(objects)
            raise RowError(
                "no ranks", f"'{rules.name(column)}' must hold objects with a rank: {got}"
            )
        ranked = [one for one in objects if isinstance(one, Mapping)]
        texts, ranks = [text_of(one) for one in ranked], [one[RANK] for one in ranked]
    scores = [-_rank(value, rules) for value in ranks]
    if len(texts) < 2:
        raise RowError("fewer than two completions", "one completion makes no pair")
    name = rules.name(column)
    scored = [Scored(answer(t, name), score) for t, score in zip(texts, scores, strict=True)]
    for better, worse in choose(scored, rules, counts, first["prompt"]):
        yield {
            **pair(first["prompt"], better.text, worse.text, where),
            "rank_chosen": int(-better.score),
            "rank_rejected": int(-worse.score),
            "rule": f"ranking, {rules.choice}",
        }


def _rank(value: object, rules: Rules) -> float:
    """A whole number from 1, which a table may hold as a fraction or as text."""
    number = value
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    elif isinstance(value, str) and value.strip().removesuffix(".0").isdigit():
        number = int(value.strip().removesuffix(".0"))
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise RowError(
            "rank out of range",
            f"'{rules.name('ranks')}' must be whole numbers from 1 (best), got {shown(value)}",
        )
    return float(number)


RANKED = Form(
    "ranking",
    "prompt, completions, ranks (1 is best); or prompt, completion, rank",
    _is_ranking,
    _from_ranking,
    ("completions", "ranks", RANK),
    by_prompt,
)
