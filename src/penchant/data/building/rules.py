"""What every form of feedback is built with: the rules, the rows, and what is counted."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from penchant.data.converting.project_rows import pair_texts
from penchant.data.records import DataError
from penchant.data.rows import pairs as formats
from penchant.data.rows.refusing import lacks
from penchant.data.rows.row import Layout, Row, RowError, is_given, kind, shown

Choice = Literal["best_worst", "best_random", "all"]
CHOICES = ("best_worst", "best_random", "all")
# What a vote may be called, by what it means.
CODES = {
    "a": "a", "b": "b", "tie": "tie", "both_bad": "both_bad", "both bad": "both_bad",
    "model_a": "a", "model_b": "b", "tie (bothbad)": "both_bad", "left": "a", "right": "b",
    "a_winner": "a", "b_winner": "b", "response_a": "a", "response_b": "b",
    "a>b": "a", "b>a": "b", "a=b": "tie", "a>>b": "a", "b>>a": "b", "draw": "tie",
    "response_1": "a", "response_2": "b", "answer_a": "a", "answer_b": "b",
    "assistant_a": "a", "assistant_b": "b", "completion_a": "a", "completion_b": "b",
    "output_a": "a", "output_b": "b", "option_a": "a", "option_b": "b",
    "first": "a", "second": "b", "c": "tie",
    "equal": "tie", "same": "tie", "neither": "both_bad",
}  # fmt: skip
# What may follow the name of the better side.
SAYING = re.compile(r"\s+(?:is (?:much |slightly )?better|wins|won)\.?$")
MEANINGS = ("a", "b", "tie", "both_bad")


@dataclass(frozen=True)
class Rules:
    """How judgements become records.

    Args:
        min_agreement: the least share of votes that a preference needs; None takes the side with
            most votes.
        choice: which pairs are made of rated or ranked completions.
        min_gap: the least difference of ratings or ranks of a pair.
        rating_range: ratings outside are refused.
        codes: what votes mean (a, b, tie or both_bad), beside the usual names.
        votes: the columns that hold one vote each.
        columns: the source's own name of each column.
        seed: of the random choice.
        turns: of two chats that part before their last answer, all turns, or the first answers
            alone.
    """

    min_agreement: float | None = None
    choice: Choice = "best_worst"
    min_gap: float = 0.0
    rating_range: tuple[float, float] | None = None
    codes: Mapping[str, str] = field(default_factory=dict)
    votes: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    turns: Literal["all", "first"] = "all"

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise DataError(
                f"agreement must be majority, unanimity or a share above 0 and at most 1, "
                f"got {self.min_agreement:g}; 0.66 asks for two votes of three"
            )
        if self.choice not in CHOICES:
            raise DataError(f"pairs must be one of {', '.join(CHOICES)}, got {self.choice!r}")
        if not (math.isfinite(self.min_gap) and self.min_gap >= 0):
            raise DataError(f"min_gap must be a number of at least 0, got {self.min_gap:g}")
        if self.rating_range and not self.rating_range[0] < self.rating_range[1]:
            low, high = self.rating_range
            raise DataError(
                f"rating_range must be LOW,HIGH with LOW below HIGH, got {low:g},{high:g}"
            )
        for code, meaning in self.codes.items():
            if meaning not in MEANINGS:
                meant = ", ".join(MEANINGS)
                raise DataError(f"codes: {code}={meaning} must mean one of {meant}; set codes")

    def name(self, column: str) -> str:
        """What the source calls a column."""
        return self.columns.get(column, column)

    def vote(self, value: object, column: str) -> str:
        """What a vote means; a boolean is none, since it does not say which side is true."""
        code = "" if isinstance(value, bool) else str(value).strip(" []").lower().removesuffix(".0")
        # Of response_0 and response_1 the second is response_1, whatever that means elsewhere.
        sides = {self.columns.get(f"completion_{side}", ""): side for side in ("a", "b")}
        own = {name.lower(): side for name, side in sides.items() if name}
        known = CODES | own | {key.lower(): meaning for key, meaning in self.codes.items()}
        code = code if code in known else re.sub(r"[\s-]+", "_", SAYING.sub("", code))
        if code not in known:
            raise RowError(
                "unknown vote",
                f"'{self.name(column)}' must be a, b, tie or both_bad, got {shown(value)}; "
                "say what it means with codes, such as 1=a,2=b,0=tie",
            )
        return known[code]

    def random(self, key: object) -> random.Random:
        """A source of choices that depends on the seed and on what is chosen from."""
        return random.Random(f"{self.seed} {key}")


class Placed(NamedTuple):
    """A row and its place, such as `votes.jsonl:17`."""

    where: str
    row: Row


Counts = Counter[str]
Rows = Iterator[dict[str, object]]


@dataclass(frozen=True)
class Form:
    """A form that feedback comes in.

    Args:
        name: what `form` calls it.
        columns: the columns that say it, for messages.
        matches: whether a row has those columns.
        make: records of the rows of one unit; what it leaves out it counts.
        used: the columns that `make` reads; others stand beside its records.
        key: what rows of one unit share; None where each row is a unit.
        makes: pairs or labels.
    """

    name: str
    columns: str
    matches: Callable[[Row, Rules], bool]
    make: Callable[[Sequence[Placed], Rules, Counts], Rows]
    used: tuple[str, ...]
    key: Callable[[Row, Rules], object] | None = None
    makes: Literal["pairs", "labels"] = "pairs"


def need(row: Row, rules: Rules, *columns: str) -> None:
    """Refuse a row that lacks one of the columns."""
    for column in columns:
        if not is_given(row, column):
            raise lacks(Layout(", ".join(columns), columns), row, [rules.name(column)])


def answer(value: object, name: str) -> object:
    """A completion that says something; `name` is the source's column."""
    if isinstance(value, bool):
        raise RowError(
            "boolean in place of text",
            f"'{name}' is the boolean {str(value).lower()}, not text; "
            "write it as a string if that was the answer",
        )
    if kind(value) is None:
        raise RowError("wrong type", f"'{name}' must be text or messages, got {shown(value)}")
    if not (value.strip() if isinstance(value, str) else value):
        raise RowError("empty completion", f"'{name}' has no text: {shown(value)}")
    return value


def pair(
    prompt: object, chosen: object, rejected: object, where: str, **more: object
) -> dict[str, object]:
    """A checked pair as a row, with what more is known of it.

    Raises:
        RowError: when nothing can be trained on it.
    """
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}
    checked = formats.to_pair(row, None, where)
    assert checked is not None, "only a label makes a tie"
    return {**pair_texts(checked), **{k: v for k, v in more.items() if v is not None}}
