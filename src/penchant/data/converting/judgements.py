"""Judgements in other projects' layouts, as rows of the forms that `data build` knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penchant.data import names
from penchant.data.converting.exchange import Exchange, NewRow, has, pick, unpacked, user
from penchant.data.rows.chats import read_messages, read_transcript, split_prompt
from penchant.data.rows.pairs import lists_texts
from penchant.data.rows.row import Row, RowError, is_given, shown

Read = Callable[[Row], NewRow]
Verdict = Callable[[Row], NewRow]
# The names that the two sides go by.
SIDES = (
    ("response_a", "response_b"), ("response_1", "response_2"), ("response1", "response2"),
    ("response 1", "response 2"), ("output_1", "output_2"), ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
)  # fmt: skip


def layout(project: str, columns: str, read: Read, *needed: str) -> Exchange:
    """An entry of the table; without `needed`, every column that it names is needed."""
    used = tuple(columns.split(", "))
    wanted = needed or used
    return Exchange(project, columns, "judgements", used, lambda row: has(row, *wanted), read)


def sides(a: str, b: str, verdict: Verdict, prompt: str | None = None) -> Read:
    """Two completions and a verdict; the prompt is named where no usual name has it."""

    def read(row: Row) -> NewRow:
        named = {"prompt": pick(row, prompt)} if prompt else {}
        return {**named, "completion_a": pick(row, a), "completion_b": pick(row, b), **verdict(row)}

    return read


def coded(column: str, a: str, b: str, tie: str = "") -> Verdict:
    """A verdict by name or number, such as `coded("label", "0", "1")`."""
    codes = {a: "a", b: "b", **({tie: "tie"} if tie else {})}

    def verdict(row: Row) -> NewRow:
        value = row[column]
        word = "" if isinstance(value, bool) else str(value).strip().removesuffix(".0")
        return {"label": codes.get(word, value)}

    return verdict


def strength(column: str) -> Verdict:
    """How much better the second is, negative where the first is: -3 to 3."""

    def verdict(row: Row) -> NewRow:
        by = _number(row, column)
        return {"label": "a" if by < 0 else "b" if by else "tie", "strength": abs(by) or None}

    return verdict


def between(column: str) -> Verdict:
    """From 1, where the first is better, to 2; 1.5 (or 0) is a tie: AlpacaEval's."""

    def verdict(row: Row) -> NewRow:
        value = _number(row, column)
        if value in (0, 1.5):
            return {"label": "tie"}
        return {"label": "a" if value < 1.5 else "b"}

    return verdict


def one_hot(a: str, b: str, tie: str) -> Verdict:
    """A column for each outcome, one of them 1."""

    def verdict(row: Row) -> NewRow:
        side = {a: "a", b: "b", tie: "tie"}
        held = [meant for name, meant in side.items() if is_given(row, name) and _number(row, name)]
        if len(held) != 1:
            raise RowError("unknown label", f"one of {', '.join(side)} must be 1, got {len(held)}")
        return {"label": held[0]}

    return verdict


def columns_of_votes(*columns: str) -> Verdict:
    """One vote a column: 1, 2, or 0 for a tie (PandaLM)."""
    codes = {"1": "a", "2": "b", "0": "tie"}

    def verdict(row: Row) -> NewRow:
        return {"votes": {name: codes.get(str(row[name]), row[name]) for name in columns}}

    return verdict


def scored(columns: Mapping[str, str], prompt: str | None = None) -> Read:
    """Completions and the columns of their scores."""

    def read(row: Row) -> NewRow:
        named = {"prompt": pick(row, prompt)} if prompt else {}
        texts = [pick(row, name) for name in columns]
        return {**named, "completions": texts, "ratings": [row[name] for name in columns.values()]}

    return read


def listed(
    prompt: str, column: str, text: str, *, score: str = "", rank: str = "", first: int = 1
) -> Read:
    """A list of objects, each with a text and a score, or a rank that counts from `first`."""

    def read(row: Row) -> NewRow:
        entries = row[column]
        if not isinstance(entries, list | tuple):
            raise RowError("wrong type", f"'{column}' must be a list, got {shown(entries)}")
        texts = [pick(one, text) for one in entries]
        if score:
            columns = {"ratings": [pick(one, score) for one in entries]}
        else:
            columns = {"ranks": [_number(one, rank) + 1 - first for one in entries]}
        return {"prompt": _question(pick(row, prompt)), "completions": texts, **_whole(columns)}

    return read


def listing(project: str, prompt: str, column: str, text: str, **how: Any) -> Exchange:
    """An entry of the table for `listed`: a prompt and a list of objects with a text each."""

    def matches(row: Row) -> bool:
        entries = row.get(column)
        first = entries[0] if isinstance(entries, list | tuple) and entries else None
        return has(row, prompt) and isinstance(first, Mapping) and text in first

    used = (prompt, column)
    read = listed(prompt, column, text, **how)
    return Exchange(project, ", ".join(used), "judgements", used, matches, read)


def _whole(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Ranks as whole numbers, which tables may hold as fractions."""
    ranks = columns.get("ranks", [])
    return {"ranks": [int(one) for one in ranks]} if ranks else columns


def two_scored(row: Row) -> NewRow:
    """Two answers, each with a score of its own."""
    both = names.sides(row)
    return scored(names.scores_of(row, both))(row) if both else {}


def is_two_scored(row: Row) -> bool:
    """Whether two columns of answers have a column of scores each."""
    both = names.sides(row)
    return both is not None and bool(names.scores_of(row, both))


def _question(prompt: object) -> object:
    """A prompt; a transcript that ends where the assistant answers becomes messages."""
    if isinstance(prompt, str) and prompt.lstrip("\n").startswith("Human:"):
        chat = [dict(one) for one in read_transcript(f"\n\n{prompt.lstrip()}", "prompt")]
        return chat[:-1] if not chat[-1]["content"] else chat
    return prompt


def conversations(row: Row) -> NewRow:
    """Two whole chats and the verdict between them, of a judge where one is named."""
    chats = [read_messages(row[name], name) for name in ("conversation_a", "conversation_b")]
    label = row["winner"]
    if chats[0] == chats[1]:
        prompt, *answers = chats[0][:-1], chats[0][-1:], chats[1][-1:]
    else:
        prompt, *answers = split_prompt(*chats)
    judge = row.get("judge")
    named = {"annotator": " ".join(map(str, judge)) if isinstance(judge, list) else judge}
    texts = dict(zip(("completion_a", "completion_b"), map(_plain, answers), strict=True))
    return {"prompt": _plain(prompt), **texts, "label": label, **(named if judge else {})}


def _plain(chat: Sequence[Any]) -> list[NewRow]:
    return [dict(one) for one in chat]


def turns(verdict: Verdict) -> Read:
    """Questions, and each side's answers to them, as lists (or lists in JSON)."""

    def read(row: Row) -> NewRow:
        several = [unpacked(row[name]) for name in ("prompt", "response_a", "response_b")]
        if not all(isinstance(value, list) for value in several):
            return sides("response_a", "response_b", verdict, "prompt")(row)
        if len({len(value) for value in several}) > 1:
            raise RowError("uneven numbers", "prompt and responses must have equally many turns")
        chats = [
            [turn for q, a in zip(several[0], side, strict=True) for turn in (user(q), _reply(a))]
            for side in several[1:]
        ]
        return conversations(
            {
                "conversation_a": chats[0],
                "conversation_b": chats[1],
                "winner": verdict(row)["label"],
            }
        )

    return read


def _reply(text: object) -> NewRow:
    return {"role": "assistant", "content": text or ""}


def label_studio(row: Row) -> NewRow:
    """An export of Label Studio: the task's data, and a choice by each annotator."""
    data = row["data"]
    votes = [_choice(one) for one in row["annotations"] if not one.get("was_cancelled")]  # type: ignore[attr-defined]
    a, b = next((two for two in SIDES if has(data, *two)), ("", ""))  # type: ignore[arg-type]
    if not a:
        raise RowError(
            "missing field", f"'data' names no two answers as {', '.join(map(str, SIDES))}"
        )
    both = {"prompt": data["prompt"], "response_a": data[a], "response_b": data[b]}  # type: ignore[index]
    read = turns(lambda _: {"label": "tie"})(both)
    read.pop("label")
    return {**read, "votes": [vote for vote in votes if vote is not None]}


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
    rankings = [one for one in _responses(row["responses"]) if isinstance(one, list)]
    if not rankings:
        raise RowError("no ranking", "'responses' must hold a list of values with ranks")
    places: dict[str, list[float]] = {}
    for ranking in rankings:
        for one in ranking:
            places.setdefault(str(one["value"]), []).append(float(one["rank"]))
    means = {name: sum(ranks) / len(ranks) for name, ranks in places.items()}
    order = sorted(set(means.values()))
    question = next((pick(fields, name) for name in ("prompt", "instruction", "input")), None)
    return {
        "prompt": question,
        "completions": [fields[name] for name in means],
        "ranks": [order.index(mean) + 1 for mean in means.values()],
    }


def _responses(responses: Any) -> list[Any]:
    """What each annotator gave, in the export of Argilla 1 or 2."""
    if isinstance(responses, Mapping):
        return [one["value"] for given in responses.values() for one in given]
    return [
        given["value"] for one in responses for given in (one.get("values") or one).values()
        if isinstance(given, Mapping) and "value" in given
    ]  # fmt: skip


def several(row: Row) -> NewRow:
    """Good answers and bad ones as lists (RewardBench 2)."""
    good, bad = list(row["chosen"]), list(row["rejected"])  # type: ignore[call-overload]
    return {"completions": [*good, *bad], "ranks": [1] * len(good) + [2] * len(bad)}


def is_several(row: Row) -> bool:
    """Whether chosen and rejected are lists of texts."""
    return all(lists_texts(row.get(name)) for name in ("chosen", "rejected"))


def summaries(row: Row) -> NewRow:
    """OpenAI's comparisons of summaries: a post or an article, two summaries, a choice."""
    info: Any = row["info"]
    if post := info.get("post"):
        heads = {"SUBREDDIT": "r/" + (info.get("subreddit") or ""), "TITLE": info.get("title")}
        head = [f"{name}: {text}" for name, text in heads.items() if text and text != "r/"]
        prompt = "\n\n".join([*head, f"POST: {post}", "TL;DR:"])
    else:
        prompt = f"Article: {info.get('article')}\n\nTL;DR:"
    texts: Any = row["summaries"]
    a, b = (one["text"] for one in texts)
    return {"prompt": prompt, "completion_a": a, "completion_b": b, **_CHOICE(row)}


_CHOICE = coded("choice", "0", "1")


def paddle(row: Row) -> NewRow:
    """PaddleNLP: questions and answers before, two responses, the better with the larger sort."""
    asked, answered = list(row["src"]), list(row["tgt"])  # type: ignore[call-overload]
    before = [turn for q, a in zip(asked, answered, strict=False) for turn in (user(q), _reply(a))]
    texts: Any = row["response"]
    order: Any = row["sort"]
    return {
        "prompt": [*before, user(asked[-1])],
        "completions": [one[0] if isinstance(one, list | tuple) else one for one in texts],
        "ranks": [1 + sorted(order, reverse=True).index(one) for one in order],
    }


def _number(row: Row, column: str) -> float:
    value = row[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError("unknown label", f"'{column}' must be a number, got {shown(value)}")
    return number


_ONE_HOT = one_hot("winner_model_a", "winner_model_b", "winner_tie")
LAYOUTS = (
    layout("Chatbot Arena, MT-bench", "conversation_a, conversation_b, winner, judge",
           conversations, "conversation_a", "conversation_b", "winner"),
    layout("Chatbot Arena (Kaggle)",
           "prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie",
           turns(_ONE_HOT), "prompt", "response_a", "response_b", "winner_model_a"),
    layout("any", "prompt, response_a, response_b, winner",
           turns(coded("winner", "response_a", "response_b"))),
    layout("any", "prompt, response_a, response_b, preference",
           turns(coded("preference", "response_a", "response_b"))),
    layout("HelpSteer2", "prompt, response_1, response_2, preference_strength",
           sides("response_1", "response_2", strength("preference_strength"))),
    layout("HelpSteer3", "context, response1, response2, overall_preference",
           sides("response1", "response2", strength("overall_preference"), "context")),
    layout("HelpSteer2 (ratings)", "prompt, response, helpfulness",
           lambda row: {"completion": row["response"], "rating": row["helpfulness"]}),
    layout("PKU-SafeRLHF", "prompt, response_0, response_1, better_response_id",
           sides("response_0", "response_1", coded("better_response_id", "0", "1"))),
    layout("SHP", "history, human_ref_A, human_ref_B, score_A, score_B",
           scored({"human_ref_A": "score_A", "human_ref_B": "score_B"}, "history")),
    layout("WebGPT", "question, answer_0, answer_1, score_0, score_1",
           scored({"answer_0": "score_0", "answer_1": "score_1"}, "question.full_text"),
           "question.full_text", "answer_0", "answer_1", "score_0", "score_1"),
    Exchange("any", "prompt, response_1, response_2, score_1, score_2", "judgements", (),
             is_two_scored, two_scored),
    layout("Prometheus (preferences)",
           "orig_instruction, orig_response_A, orig_response_B, orig_preference",
           sides("orig_response_A", "orig_response_B", coded("orig_preference", "A", "B"),
                 "orig_instruction")),
    layout("Prometheus (feedback)", "orig_instruction, orig_response, orig_score",
           lambda row: {"prompt": row["orig_instruction"], "completion": row["orig_response"],
                        "rating": row["orig_score"]}),
    layout("Auto-J", "prompt, response 1, response 2, label",
           sides("response 1", "response 2", coded("label", "0", "1", "2"))),
    layout("PandaLM",
           "instruction, input, response1, response2, annotator1, annotator2, annotator3",
           sides("response1", "response2",
                 columns_of_votes("annotator1", "annotator2", "annotator3")),
           "response1", "response2", "annotator1", "annotator2", "annotator3"),
    layout("LLMBar", "input, output_1, output_2, label",
           sides("output_1", "output_2", coded("label", "1", "2"))),
    layout("AlpacaEval, AlpacaFarm", "instruction, input, output_1, output_2, preference",
           sides("output_1", "output_2", between("preference")),
           "output_1", "output_2", "preference"),
    layout("summarize-from-feedback", "info, summaries, choice", summaries),
    listing("Nectar", "prompt", "answers", "answer", rank="rank"),
    listing("Stack Exchange", "question", "answers", "text", score="pm_score"),
    listing("NeMo-RL", "context", "completions", "completion", rank="rank", first=0),
    listing("Vertex", "contents", "completions", "completion", score="score"),
    layout("distilabel", "instruction, generations, ratings",
           lambda row: {"completions": row["generations"]}),
    layout("PaddleNLP", "src, tgt, response, sort", paddle),
    Exchange("RewardBench 2", "prompt, chosen, rejected (lists of texts)", "judgements",
             ("prompt", "chosen", "rejected"), is_several, several),
    layout("Label Studio", "data, annotations", label_studio),
    layout("Argilla", "fields, responses", argilla),
)  # fmt: skip
