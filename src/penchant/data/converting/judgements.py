"""Judgements in other projects' layouts, as rows of the forms that `data build` knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penchant.data import names
from penchant.data.columns import pick
from penchant.data.converting.annotations import (
    argilla,
    argilla_table,
    is_argilla_table,
    is_prodigy,
    label_studio,
    prodigy,
)
from penchant.data.converting.comparisons import (
    Read,
    between,
    coded,
    columns_of_votes,
    conversations,
    is_won,
    number,
    one_hot,
    reply,
    scored_chats,
    strength,
    turns,
    two_answers,
    won,
)
from penchant.data.converting.exchange import Exchange, NewRow, has, user
from penchant.data.converting.feedback import is_open_webui, is_traced, open_webui, traced
from penchant.data.records import DataError
from penchant.data.rows.chats import read_transcript
from penchant.data.rows.pairs import lists_texts
from penchant.data.rows.row import Row, RowError, shown


def layout(project: str, columns: str, read: Read, *needed: str) -> Exchange:
    """An entry of the table; without `needed`, every column that it names is needed."""
    used = tuple(columns.split(", "))
    wanted = needed or used
    return Exchange(project, columns, "judgements", used, lambda row: has(row, *wanted), read)


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
            columns = {"ranks": [number(one, rank) + 1 - first for one in entries]}
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


def best_of(row: Row) -> NewRow:
    """Several answers and the place of the best one, counted from 0."""
    column, index = _best(row) or ("", "")
    texts: Any = row[column]
    at: Any = row[index]
    if not 0 <= at < len(texts):
        # Read on, all the other rows would be the wrong way round.
        raise DataError(
            f"'{index}' is {at} beside {len(texts)} answers, of which the first is 0 here; where "
            f"it counts from 1, take 1 away: jq -c '.{index} -= 1' FILE > NEW.jsonl"
        )
    ranks = [1 if place == at else 2 for place in range(len(texts))]
    return {"completions": list(texts), "ranks": ranks}


def is_best_of(row: Row) -> bool:
    """Whether a list of texts stands beside the place of the best of them."""
    return bool(_best(row))


def _best(row: Row) -> tuple[str, str] | None:
    column = next(iter(names.own_name(row, "completions")), "")
    index = names.place_of_best(row)
    return (column, index) if index and lists_texts(row.get(column)) else None


def columns_of_answers(row: Row) -> NewRow:
    """A column for each answer, which holds a text and a score, or whether it is correct."""
    entries = names.rated_columns(row)
    return {"completions": list(entries.values())}


def paddle(row: Row) -> NewRow:
    """PaddleNLP: questions and answers before, two responses, the better with the larger sort."""
    asked, answered = list(row["src"]), list(row["tgt"])  # type: ignore[call-overload]
    before = [turn for q, a in zip(asked, answered, strict=False) for turn in (user(q), reply(a))]
    texts: Any = row["response"]
    order: Any = row["sort"]
    return {
        "prompt": [*before, user(asked[-1])],
        "completions": [one[0] if isinstance(one, list | tuple) else one for one in texts],
        "ranks": [1 + sorted(order, reverse=True).index(one) for one in order],
    }


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
           two_answers("response_1", "response_2", strength("preference_strength"))),
    layout("HelpSteer3", "context, response1, response2, overall_preference",
           two_answers("response1", "response2", strength("overall_preference"), "context")),
    layout("HelpSteer2 (ratings)", "prompt, response, helpfulness",
           lambda row: {"completion": row["response"], "rating": row["helpfulness"]}),
    layout("PKU-SafeRLHF", "prompt, response_0, response_1, better_response_id",
           two_answers("response_0", "response_1", coded("better_response_id", "0", "1"))),
    layout("SHP", "history, human_ref_A, human_ref_B, score_A, score_B",
           scored({"human_ref_A": "score_A", "human_ref_B": "score_B"}, "history")),
    layout("WebGPT", "question, answer_0, answer_1, score_0, score_1",
           scored({"answer_0": "score_0", "answer_1": "score_1"}, "question.full_text"),
           "question.full_text", "answer_0", "answer_1", "score_0", "score_1"),
    Exchange("any", "prompt, response_1, response_2, score_1, score_2", "judgements", (),
             is_two_scored, two_scored),
    layout("Prometheus (preferences)",
           "orig_instruction, orig_response_A, orig_response_B, orig_preference",
           two_answers("orig_response_A", "orig_response_B", coded("orig_preference", "A", "B"),
                 "orig_instruction")),
    layout("Prometheus (feedback)", "orig_instruction, orig_response, orig_score",
           lambda row: {"prompt": row["orig_instruction"], "completion": row["orig_response"],
                        "rating": row["orig_score"]}),
    layout("Auto-J", "prompt, response 1, response 2, label",
           two_answers("response 1", "response 2", coded("label", "0", "1", "2"))),
    layout("PandaLM",
           "instruction, input, response1, response2, annotator1, annotator2, annotator3",
           two_answers("response1", "response2",
                 columns_of_votes("annotator1", "annotator2", "annotator3")),
           "response1", "response2", "annotator1", "annotator2", "annotator3"),
    layout("LLMBar", "input, output_1, output_2, label",
           two_answers("output_1", "output_2", coded("label", "1", "2"))),
    layout("AlpacaEval, AlpacaFarm", "instruction, input, output_1, output_2, preference",
           two_answers("output_1", "output_2", between("preference")),
           "output_1", "output_2", "preference"),
    layout("summarize-from-feedback", "info, summaries, choice", summaries),
    listing("Nectar", "prompt", "answers", "answer", rank="rank"),
    listing("Stack Exchange", "question", "answers", "text", score="pm_score"),
    listing("NeMo-RL", "context", "completions", "completion", rank="rank", first=0),
    listing("Vertex", "contents", "completions", "completion", score="score"),
    layout("distilabel", "instruction, generations, ratings",
           lambda row: {"completions": row["generations"]}),
    Exchange("any", "prompt, responses, best (the place of the best one, from 0)", "judgements",
             (), is_best_of, best_of),
    Exchange("any", "prompt, columns that each hold a text and a score", "judgements", (),
             lambda row: len(names.rated_columns(row)) > 1, columns_of_answers),
    Exchange("any", "prompt, response_a, response_b, a_wins, b_wins, tie", "judgements", (),
             is_won, won),
    layout("PaddleNLP", "src, tgt, response, sort", paddle),
    Exchange("RewardBench 2", "prompt, chosen, rejected (lists of texts)", "judgements",
             ("prompt", "chosen", "rejected"), is_several, several),
    layout("Label Studio", "data, annotations", label_studio),
    layout("Argilla", "fields, responses", argilla),
    Exchange("Argilla (a table)", "prompt, response_a, response_b, preference.responses",
             "judgements", (), is_argilla_table, argilla_table),
    Exchange("Prodigy", "text, options, accept", "judgements", ("text", "options", "accept"),
             is_prodigy, prodigy),
    Exchange("Open WebUI", "data, meta, snapshot", "judgements", ("data", "meta", "snapshot"),
             is_open_webui, open_webui),
    Exchange("Langfuse, LangSmith", "input, output, scores", "judgements",
             ("output", "scores", "feedback"), is_traced, traced),
    layout("UltraFeedback and others, whole chats",
           "conv_A, conv_B, conv_A_rating, conv_B_rating", scored_chats),
)  # fmt: skip
