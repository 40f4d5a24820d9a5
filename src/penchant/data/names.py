"""What columns are called elsewhere, in several languages, by the name used here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product

from penchant.data.cells import TEXTS
from penchant.data.rows.row import Row

# Compared without case and separators.
NAMES = {
    "prompt": ("prompt", "request", "question", "instruction", "query", "input", "context",
               "problem", "inputtext", "task", "user", "x", "frage", "anweisung", "pregunta",
               "instruccion", "pergunta", "userprompt", "openingprompt", "conversation",
               "conversations", "chat", "dialogue", "问题", "提问", "指令", "质问",
               "質問", "指示",
               "プロンプト", "질문"),
    "completion": ("completion", "response", "answer", "output", "generation", "reply",
                   "solution", "modelresponse", "modeloutput", "assistantresponse", "antwort",
               "respuesta", "回答",
                   "応答", "답변"),
    "label": ("label", "rating", "feedback", "thumb", "thumbs", "vote", "liked", "score",
              "verdict", "preference", "pref", "winner", "choice", "better", "preferred",
              "preferredresponse", "betterresponse", "betterresponseid", "saferresponseid",
              "isgood", "issafe", "ischosen", "iscorrect", "correct", "judgment", "judgement",
              "thumbsup", "upvoted", "isliked", "selected", "overallpreference",
              "preferencestrength", "strength", "comparison", "annotation", "betterid",
              "betteranswer", "betteranswerid", "preferredid", "preferredanswer", "winnerid"),
    "votes": ("votes", "annotations", "annotators", "judgments", "judgements", "preferences",
              "labels", "verdicts", "preferenceresponses"),
    "rating": ("rating", "score", "stars", "star", "grade", "quality", "reward", "helpfulness",
               "overallscore", "overall", "correct", "iscorrect", "passed"),
    "completions": ("completions", "responses", "answers", "generations", "candidates", "outputs",
                    "replies", "solutions", "samples", "allresponses", "allanswers",
                    "alloutputs"),
    "messages": ("messages", "conversation", "conversations", "chat", "dialogue"),
    "ratings": ("ratings", "rating", "scores", "score", "rewards", "stars", "labels",
                "correct", "iscorrect", "correctness", "passed", "allrewards", "allscores",
                "allratings"),
    "ranks": ("ranks", "rank", "rankings", "ranking"),
    "rank": ("rank", "ranking", "place", "position"),
}  # fmt: skip
# What the better and the worse answer are called; an answer's name may stand before or after.
STEMS = {
    "chosen": ("chosen", "good", "better", "best", "preferred", "accepted", "winning", "winner",
               "win", "positive", "pos", "j", "yw", "gut", "besser", "elegida", "mejor", "好",
               "良い", "较好", "採用"),
    "rejected": ("rejected", "bad", "worse", "worst", "dispreferred", "nonpreferred", "losing",
                 "loser", "lose", "negative", "neg", "unpreferred", "k", "yl", "schlecht",
                 "schlechter", "rechazada", "peor", "坏", "差", "悪い", "较差", "不採用"),
}  # fmt: skip
# Of which one stands in place of the other within longer names, as in full_chosen, full_rejected.
OPPOSED = (
    *(("chosen", "rejected"), ("good", "bad"), ("better", "worse"), ("best", "worst")),
    *(("preferred", "dispreferred"), ("preferred", "nonpreferred"), ("accepted", "rejected")),
    *(("winning", "losing"), ("winner", "loser"), ("positive", "negative")),
)
ANSWERS = ("", *NAMES["completion"], "resp", "text", "message", "messages", "instruction")
NAMES |= {
    side: tuple(
        word
        for stem, noun in product(stems, ANSWERS)
        for word in (f"{stem}{noun}", f"{noun}{stem}")
    )
    for side, stems in STEMS.items()
}
ABOUT = re.compile(r"model|score|rating|reward|logp|length|source|name|index|idx|id$|prob|reason|"
                   r"critique|feedback|tokens?|rank|grade|count")  # fmt: skip
# Names of prompts that metadata have as well, as `task: math`.
AMBIGUOUS = {"user", "task", "x", "context"}
# The ends of a pair of columns with answers, such as response1 and response2.
ENDS = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"), ("left", "right"), ("x", "y"))
BARE = ("left", "right"), ("a", "b"), ("first", "second")  # such names without an answer's
VOTER = re.compile(r"(annotator|rater|judge|worker|vote|label)\d+")


def own_names(row: Row, wanted: Sequence[str]) -> dict[str, str] | None:
    """The row's own names of the wanted columns where they differ.

    Args:
        row: any.
        wanted: names in `NAMES`.

    Returns:
        None where one is not there.
    """
    columns: dict[str, str] = {}
    for name in wanted:
        if name in row:
            continue
        known = next(iter(own_name(row, name)), None)
        if known is None:
            return None
        columns[name] = known
    return columns


def own_name(row: Row, wanted: str) -> list[str]:
    """The row's names of a column, as it is called here first; empty where it has none."""
    own = {plain_name(name): str(name) for name in row}
    known = [wanted] if wanted in row else []
    known += [
        own[other]
        for other in NAMES[wanted]
        if other in own and not (other in AMBIGUOUS and _is_a_name(row[own[other]]))
    ]
    if wanted in STEMS:  # such as full_chosen beside full_rejected
        known += [
            name
            for both in OPPOSED
            for stem, against in [both if wanted == "chosen" else both[::-1]]
            for plain, name in own.items()
            if stem in plain and plain.replace(stem, against) in own and not ABOUT.search(plain)
        ]
    return known


def sides(row: Row) -> tuple[str, str] | None:
    """Two columns of answers whose names differ only in their ends."""
    names = list(map(str, row))
    for both in BARE:
        if all(isinstance(row.get(name), str | list) for name in both):
            return both
    for first, second in ENDS:
        for name in names:
            stem = name[: len(name) - len(first)]
            if not name.lower().endswith(first) or not stem or stem.startswith("model"):
                continue
            other = next((n for n in names if n.lower() == (stem + second).lower()), None)
            if other and isinstance(row[name], str | list) and isinstance(row[other], str | list):
                return name, other
    return None


def outcomes(row: Row) -> tuple[str, str, str] | None:
    """A column for each outcome of a comparison, one of them 1, such as a_wins, b_wins and tie.

    Returns:
        Those of the first and the second side, and that of a tie, empty where there is none.
    """
    flags = {name: str(name) for name, value in row.items() if _is_flag(value)}
    parts = {re.sub(r"(?<![a-z])(?:a|b)(?![a-z])", "*", name.lower()) for name in flags.values()}
    for stem in sorted(part for part in parts if part.count("*") == 1):
        first, second = (
            next((n for n in flags.values() if n.lower() == stem.replace("*", side)), None)
            for side in ("a", "b")
        )
        if first and second and sum(bool(row[name]) for name in (first, second)) <= 1:
            tie = next((n for n in flags.values() if "tie" in n.lower()), "")
            return first, second, tie
    return None


def _is_flag(value: object) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)


# What the place of the best of several answers is called, counted from 0.
PLACES = ("best", "chosen", "preferred", "winner", "selected", "correct", "accepted")
RATINGS = ("rating", "score", "overall_score", "reward", "correct", "is_correct", "upvotes",
           "votes", "likes", "points")  # fmt: skip


def rated_columns(row: Row) -> dict[str, Mapping[str, object]]:
    """The columns that each hold an answer's text and its score, by name."""
    return {
        str(name): value
        for name, value in row.items()
        if isinstance(value, Mapping)
        and any(isinstance(value.get(text), str) for text in TEXTS)
        and any(value.get(rating) is not None for rating in RATINGS)
    }


def listed_objects(value: object) -> object:
    """The objects of a table kept by column, as datasets hands lists of objects out.

    `{"text": ["a", "b"], "score": [1, 2]}` is a list of two; anything else stays as it is.
    """
    if not isinstance(value, Mapping) or not {*TEXTS} & {*value} or not {*RATINGS} & {*value}:
        return value
    columns = list(value.values())
    if not all(isinstance(one, list | tuple) for one in columns) or len({*map(len, columns)}) != 1:
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _is_a_name(value: object) -> bool:
    """Whether a value is a word, as metadata are, rather than something that asks."""
    return isinstance(value, str) and re.fullmatch(r"[\w./:-]*", value, re.ASCII) is not None


def voters(row: Row) -> list[str]:
    """The columns that hold one annotator's vote each, as annotator_1 and annotator_2."""
    names = [str(name) for name in row if VOTER.fullmatch(plain_name(name))]
    return names if len(names) > 1 else []


def place_of_best(row: Row) -> str:
    """The column with the place of the best of several answers; empty where there is none."""
    known = own_name(row, "chosen")
    ends = {f"{stem}{end}" for stem in PLACES for end in ("idx", "index")}
    known += [str(name) for name in row if plain_name(name) in ends]
    whole = (n for n in known if isinstance(row[n], int) and not isinstance(row[n], bool))
    return next(whole, "")


def scores_of(row: Row, columns: tuple[str, str]) -> dict[str, str]:
    """Two columns of answers, each with the column of its score; empty where there are none."""
    for first, second in ENDS:
        if not (columns[0].endswith(first) and columns[1].endswith(second)):
            continue
        for name in NAMES["rating"]:
            for joint in ("_", ""):
                scores = (f"{name}{joint}{first}", f"{name}{joint}{second}")
                if all(isinstance(row.get(one), int | float | str) for one in scores):
                    return dict(zip(columns, scores, strict=True))
    return {}


def plain_name(name: object) -> str:
    """A name without case and separators."""
    return re.sub(r"[\W_]", "", str(name).lower())
