"""Layouts of other projects, one case for each: the better answer is chosen, and nothing is lost.

The table in docs/data.md is made of these cases: `python tests/data/converting/test_layouts.py`
prints it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penchant.data.building import build
from penchant.data.converting import judgements, projects
from penchant.data.converting.convert import convert
from penchant.data.prompts import read_prompts
from penchant.data.read import read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import DataError

Row = dict[str, Any]
DOCS = Path(__file__).parents[3] / "docs" / "data.md"
START, END = "<!-- layouts: made of the tests -->", "<!-- end of layouts -->"


@dataclass(frozen=True)
class Case:
    """One layout.

    Attributes:
        source: who writes it.
        rows: of one preference, in which answers say GOOD and BAD.
        by: how it becomes pairs or labels: train (as it is), convert or build.
        prompt: the texts of the prompt that comes out.
        known: what else comes out.
    """

    source: str
    rows: list[Row]
    by: str
    prompt: list[str]
    known: Row


def case(source: str, by: str, *rows: Row, prompt: str = "q", **known: Any) -> Case:
    return Case(source, list(rows), by, prompt.split("|"), known)


def turn(role: str, content: Any) -> Row:
    return {"role": role, "content": content}


def said(speaker: str, value: str) -> Row:
    return {"from": speaker, "value": value}


USER, GOOD, BAD = turn("user", "q"), turn("assistant", "GOOD"), turn("assistant", "BAD")
SIDES = {"chosen": "GOOD", "rejected": "BAD"}
CHATS = {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD]}
PART = {"type": "text", "text": "q"}
REPLY = {"role": "assistant", "deleted": False}
RANKED = [{**REPLY, "text": "BAD", "rank": 1}, {**REPLY, "text": "GOOD", "rank": 0}]
OPTIONS = [{"id": "x", "text": "BAD"}, {"id": "y", "text": "GOOD"}]
ASPECTS = {"helpfulness": {"Rating": "1"}, "honesty": {"Rating": "2"}}
WEBUI = {"history": {"currentId": "b", "messages": {
    "a": {"id": "a", "parentId": None, "role": "user", "content": "q"},
    "b": {"id": "b", "parentId": "a", "role": "assistant", "content": "GOOD"},
    "c": {"id": "c", "parentId": "a", "role": "assistant", "content": "BAD"}}}}  # fmt: skip
CASES = [
    case("TRL", "train", {"prompt": "q", **SIDES}),
    case("RewardBench", "train", {"prompt": "q", **SIDES, "subset": "s", "id": 1}),
    case("Skywork, HelpSteer as chats", "train", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    case("UltraFeedback, binarized", "train",
         {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD],
          "score_chosen": 8.5, "score_rejected": 2.0}, margin=6.5),
    case("Argilla's UltraFeedback", "train",
         {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD],
          "chosen-rating": 4.5, "rejected-rating": 2.0}, margin=2.5),
    case("HH-RLHF", "train", {"chosen": "\n\nHuman: q\n\nAssistant: GOOD",
                              "rejected": "\n\nHuman: q\n\nAssistant: BAD"}),
    case("ShareGPT pairs", "train", {"chosen": [said("human", "q"), said("gpt", "GOOD")],
                                     "rejected": [said("human", "q"), said("gpt", "BAD")]}),
    case("answers as one message", "train", {"prompt": "q", "chosen": GOOD, "rejected": BAD}),
    case("content in parts of text", "train", {"prompt": [turn("user", [PART])], **SIDES}),
    case("ms-swift KTO", "train", {"messages": [USER, GOOD], "label": True},
         {"messages": [USER, BAD], "label": False}),
    case("Axolotl, Intel Orca", "convert", {"system": "s", "question": "q", **SIDES}, prompt="s|q"),
    case("Axolotl with a prompt", "convert", {"system": "s", "prompt": "q", **SIDES}, prompt="s|q"),
    case("Argilla's Orca", "convert", {"system": "s", "input": "q", **SIDES}, prompt="s|q"),
    case("Axolotl chat", "convert", {"messages": [USER], "chosen": GOOD, "rejected": BAD}),
    case("LLaMA-Factory ShareGPT", "convert",
         {"conversations": [said("human", "q")], "chosen": said("gpt", "GOOD"),
          "rejected": said("gpt", "BAD")}),
    case("LLaMA-Factory, answers as text", "convert",
         {"system": "s", "conversations": [said("human", "q")], **SIDES}, prompt="s|q"),
    case("LLaMA-Factory, answers as lists", "convert",
         {"conversations": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    case("LLaMA-Factory Alpaca", "convert",
         {"system": "s", "instruction": "q", "input": "text", "history": [["before", "so"]],
          **SIDES}, prompt="s|before|so|q\ntext"),
    case("LLaMA-Factory Alpaca, first version", "convert",
         {"instruction": "q", "input": "text", "output": ["GOOD", "BAD"]}, prompt="q\ntext"),
    case("LLaMA-Factory Alpaca KTO", "convert",
         {"instruction": "q", "input": "", "output": "GOOD", "kto_tag": True},
         {"instruction": "q", "input": "", "output": "BAD", "kto_tag": False}),
    case("LLaMA-Factory ShareGPT KTO", "convert",
         {"conversations": [said("human", "q"), said("gpt", "GOOD")], "kto_tag": True},
         {"conversations": [said("human", "q"), said("gpt", "BAD")], "kto_tag": False}),
    case("Axolotl KTO", "convert",
         {"system": "s", "prompt": "q", "completion": "GOOD", "label": True},
         {"system": "s", "prompt": "q", "completion": "BAD", "label": False}, prompt="s|q"),
    case("ms-swift DPO", "convert", {"messages": [USER, GOOD], "rejected_response": "BAD"}),
    case("ms-swift DPO, chats", "convert",
         {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]}),
    case("ms-swift DPO, before its messages", "convert",
         {"system": "s", "history": [["before", "so"]], "query": "q", "response": "GOOD",
          "rejected_response": "BAD"}, prompt="s|before|so|q"),
    case("A chat with its system message beside", "convert",
         {"system": "s", "prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, prompt="s|q"),
    case("LLaMA-Factory v1", "train",
         {side: [turn("user", [{"type": "text", "value": "q"}]),
                 turn("assistant", [{"type": "text", "value": text}])]
          for side, text in SIDES.items()}),
    case("OpenAI", "convert",
         {"input": {"messages": [turn("user", [PART])], "tools": []},
          "preferred_output": [GOOD], "non_preferred_output": [BAD]}),
    case("Stack Exchange, paired", "convert",
         {"question": "q", "response_j": "GOOD", "response_k": "BAD"}),
    case("NeMo-Aligner", "convert",
         {"prompt": "q", "chosen_response": "GOOD", "rejected_response": "BAD"}),
    case("Chatbot Arena", "build", {**CHATS, "winner": "model_b", "judge": "j"}),
    case("MT-bench judgements", "build", {**CHATS, "winner": "model_b", "judge": "i"},
         {**CHATS, "winner": "model_b", "judge": "j"}, {**CHATS, "winner": "tie", "judge": "k"},
         agreement=2 / 3),
    case("Chatbot Arena, Kaggle", "build",
         {"prompt": '["q"]', "response_a": '["BAD"]', "response_b": '["GOOD"]',
          "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}),
    case("WSDM Cup", "build",
         {"prompt": "q", "response_a": "BAD", "response_b": "GOOD", "winner": "model_b"}),
    case("two responses and a preference", "build",
         {"prompt": "q", "response_a": "BAD", "response_b": "GOOD", "preference": "B"}),
    case("HelpSteer2 preferences", "build",
         {"prompt": "q", "response_1": "GOOD", "response_2": "BAD", "preference_strength": -2},
         margin=2.0),
    case("HelpSteer3", "build",
         {"context": [USER], "response1": "BAD", "response2": "GOOD", "overall_preference": 3},
         margin=3.0),
    case("HelpSteer2 ratings", "build", {"prompt": "q", "response": "GOOD", "helpfulness": 4},
         {"prompt": "q", "response": "BAD", "helpfulness": 1}, margin=3.0),
    case("PKU-SafeRLHF", "build", {"prompt": "q", "response_0": "BAD", "response_1": "GOOD",
                                   "better_response_id": 1}),
    case("SHP", "build", {"history": "q", "human_ref_A": "BAD", "human_ref_B": "GOOD",
                          "score_A": 2, "score_B": 9}, margin=7.0),
    case("WebGPT", "build",
         {"question": {"full_text": "q"}, "answer_0": "GOOD", "answer_1": "BAD", "score_0": 0.5,
          "score_1": -0.5}, margin=1.0),
    case("Auto-J", "build",
         {"prompt": "q", "response 1": "BAD", "response 2": "GOOD", "label": 1}),
    case("PandaLM", "build",
         {"instruction": "q", "input": "", "response1": "BAD", "response2": "GOOD",
          "annotator1": 2, "annotator2": 2, "annotator3": 1}, agreement=2 / 3),
    case("LLMBar", "build", {"input": "q", "output_1": "GOOD", "output_2": "BAD", "label": 1}),
    case("AlpacaEval", "build",
         {"instruction": "q", "output_1": "GOOD", "output_2": "BAD", "preference": 1.00006}),
    case("AlpacaFarm", "build",
         {"instruction": "q", "input": "text", "output_1": "BAD", "output_2": "GOOD",
          "preference": 2}, prompt="q\n\ntext"),
    case("summarize-from-feedback", "build",
         {"info": {"post": "q", "title": None, "subreddit": None},
          "summaries": [{"text": "BAD"}, {"text": "GOOD"}], "choice": 1},
         prompt="POST: q\n\nTL;DR:"),
    case("Nectar", "build",
         {"prompt": "\n\nHuman: q\n\nAssistant: ",
          "answers": [{"answer": "BAD", "rank": 2.0}, {"answer": "GOOD", "rank": 1.0}]}),
    case("Stack Exchange", "build",
         {"question": "q", "answers": [{"text": "BAD", "pm_score": 1},
                                       {"text": "GOOD", "pm_score": 4}]}, margin=3.0),
    case("UltraFeedback", "build",
         {"instruction": "q", "completions": [{"response": "BAD", "overall_score": 2.0},
                                              {"response": "GOOD", "overall_score": 8.0}]},
         margin=6.0),
    case("distilabel", "build",
         {"instruction": "q", "generations": ["BAD", "GOOD"], "ratings": [1, 5]}, margin=4.0),
    case("any, a score for each answer", "build",
         {"prompt": "q", "response_1": "BAD", "response_2": "GOOD", "score_1": 1, "score_2": 4.5},
         margin=3.5),
    case("any, completions with content and score", "build",
         {"prompt": "q", "completions": [{"content": "BAD", "score": 0.25},
                                         {"content": "GOOD", "score": 0.75}]}, margin=0.5),
    case("any, with system_prompt", "convert",
         {"system_prompt": "s", "prompt": "q", **SIDES}, prompt="s|q"),
    case("the hub's viewer", "train", {"row_idx": 0, "row": {"prompt": "q", **SIDES}}),
    case("Prometheus, preferences", "build",
         {"orig_instruction": "q", "orig_response_A": "BAD", "orig_response_B": "GOOD",
          "orig_preference": "B", "instruction": "a judge's task", "output": "B"}),
    case("Prometheus, feedback", "build",
         *({"orig_instruction": "q", "orig_response": text, "orig_score": score,
            "instruction": "a judge's task"} for text, score in (("BAD", "2"), ("GOOD", "5"))),
         margin=3.0),
    case("NeMo-RL", "build",
         {"context": [USER], "completions": [{"rank": 1, "completion": [BAD]},
                                             {"rank": 0, "completion": [GOOD]}]}),
    case("Vertex", "build",
         {"contents": [{"role": "user", "parts": [{"text": "q"}]}],
          "completions": [
              {"score": 0.0, "completion": {"role": "model", "parts": [{"text": "BAD"}]}},
              {"score": 1.0, "completion": {"role": "model", "parts": [{"text": "GOOD"}]}}]},
         margin=1.0),
    case("PaddleNLP", "build",
         {"src": ["before", "q"], "tgt": ["so"], "response": [["BAD"], ["GOOD"]], "sort": [0, 1]},
         prompt="before|so|q"),
    case("RewardBench 2", "build",
         {"prompt": "q", "chosen": ["GOOD"], "rejected": ["BAD", "BAD!"]}),
    case("OpenAssistant trees", "build",
         {"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": RANKED}}),
    case("OpenAssistant messages with replies", "build",
         {"text": "q", "role": "prompter", "replies": RANKED}),
    case("OpenAssistant messages", "build",
         {"message_id": "a", "parent_id": None, "text": "q", "role": "prompter", "rank": None,
          "message_tree_id": "a"},
         *({**one, "message_id": f"b{i}", "parent_id": "a", "message_tree_id": "a"}
           for i, one in enumerate(RANKED))),
    case("Label Studio", "build",
         {"data": {"prompt": "q", "response_a": "BAD", "response_b": "GOOD"},
          "annotations": [{"result": [{"value": {"choices": ["b_winner"]}}]},
                          {"result": [{"value": {"selected": "right"}}]},
                          {"result": [{"value": {"selected": "left"}}], "was_cancelled": True}]},
         agreement=1.0),
    case("Argilla", "build",
         {"fields": {"prompt": "q", "response-1": "BAD", "response-2": "GOOD"},
          "responses": {"preference": [{"value": [{"value": "response-1", "rank": 2},
                                                  {"value": "response-2", "rank": 1}]}]}}),
    case("Label Studio, other names", "build",
         {"data": {"question": "q", "answer1": "BAD", "answer2": "GOOD"},
          "annotations": [{"result": [{"value": {"selected": "right"}}]},
                          {"result": [{"value": {"choices": ["answer2"]}}]}]}, agreement=1.0),
    case("Argilla, one of two chosen", "build",
         {"fields": {"instruction": "q", "response1": "BAD", "response2": "GOOD"},
          "responses": {"preference": [{"value": "response2", "user_id": "u"}]}}),
    case("Two answers, the winner by its model", "build",
         {"prompt": "q", "model_a": "m", "model_b": "n", "response_a": "BAD",
          "response_b": "GOOD", "winner": "n"}),
    case("Two answers, a column for each outcome", "build",
         {"prompt": "q", "response_a": "BAD", "response_b": "GOOD", "a_wins": False,
          "b_wins": True, "tie": False}),
    case("Several answers and the place of the best", "build",
         {"prompt": "q", "responses": ["BAD", "GOOD"], "best": 1}),
    case("An answer in each column, correct or not", "build",
         {"question": "q", "tuned": {"solution": "BAD", "is_correct": False},
          "verified": {"solution": "GOOD", "is_correct": True}}, margin=1.0),
    case("A list of answers, correct or not", "build",
         {"prompt": "q", "completions": [{"text": "BAD", "correct": False},
                                         {"text": "GOOD", "correct": True}]}, margin=1.0),
    case("A row within a column", "train", {"id": 1, "data": {"prompt": "q", **SIDES}}),
    case("A row as JSON within a column", "train", {"text": json.dumps({"prompt": "q", **SIDES})}),
    case("LangSmith, examples", "train", {"inputs": {"messages": [USER]}, "outputs": SIDES}),
    case("Langfuse, LangSmith, a scored answer", "build",
         {"input": {"messages": [USER]}, "output": GOOD, "scores": [{"name": "s", "value": 1}]},
         {"input": {"messages": [USER]}, "output": BAD, "scores": [{"name": "s", "value": 0}]}),
    case("Open WebUI", "build",
         {"data": {"rating": 1}, "meta": {"message_id": "b"}, "snapshot": {"chat": WEBUI}},
         {"data": {"rating": -1}, "meta": {"message_id": "c"}, "snapshot": {"chat": WEBUI}}),
    case("Chats in which answers have thumbs", "build",
         {"messages": [USER, {**GOOD, "feedback": {"rating": "thumbsUp"}}]},
         {"messages": [USER, {**BAD, "feedback": {"rating": "thumbsDown"}}]}),
    case("Answers by their model, with scores", "build",
         {"prompt": "q", "completions": {"m": "BAD", "n": "GOOD"}, "ratings": {"n": 4, "m": 1}},
         margin=3.0),
    case("Answers with a score for each aspect", "build",
         {"prompt": "q", "completions": [
             {"text": "BAD", "annotations": ASPECTS},
             {"text": "GOOD", "annotations": {"helpfulness": {"Rating": "5"},
                                              "honesty": {"Rating": "4"}}}]}, margin=3.0),
    case("Answers of which one is selected", "build",
         {"prompt": "q", "completions": [{"text": "BAD", "selected": False},
                                         {"text": "GOOD", "selected": True}]}, margin=1.0),
    case("A row for each answer, with its rank", "build",
         {"prompt": "q", "completion": "BAD", "rank": 2},
         {"prompt": "q", "completion": "GOOD", "rank": 1}),
    case("Answers as objects, and a judge's verdict", "build",
         {"prompt": "q", "response_a": {"answer": "BAD"}, "response_b": {"answer": "GOOD"},
          "winner": "[[B>A]]"}),
    case("Prodigy", "build",
         {"text": "q", "options": OPTIONS, "accept": ["y"], "answer": "accept"}),
    case("Argilla, a table of records", "build",
         {"prompt": "q", "response-1": "BAD", "response-2": "GOOD",
          "ranking.responses": [["response-2", "response-1"]], "ranking.responses.users": ["u"]}),
    case("Label Studio, ranked items", "build",
         {"data": {"prompt": "q", "items": [{"id": "x", "body": "BAD"},
                                            {"id": "y", "body": "GOOD"}]},
          "annotations": [{"result": [{"value": {"ranker": {"rank": ["y", "x"]}}}]}]}),
    case("Unified-Feedback", "build",
         {"conv_A": [USER, BAD], "conv_B": [USER, GOOD], "conv_A_rating": 1.0,
          "conv_B_rating": 3.5}, margin=2.5),
    case("UltraInteract", "convert", {"task": "math", "trajectory": [said("user", "q")], **SIDES}),
    case("Amazon Nova", "convert",
         {"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "s"}],
          "messages": [turn("user", [{"text": "q"}]), {"role": "assistant", "candidates": [
              {"content": [{"text": "BAD"}], "preferenceLabel": "non-preferred"},
              {"content": [{"text": "GOOD"}], "preferenceLabel": "preferred"}]}]}, prompt="s|q"),
    case("Whole chats with their system message beside", "convert",
         {"system": "s", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, prompt="s|q"),
]  # fmt: skip


def saved(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(one: Case, tmp_path: Path) -> Path:
    """The file that training reads of a case."""
    source, output = saved(tmp_path / "raw.jsonl", one.rows), tmp_path / "made.jsonl"
    if one.by == "convert":
        convert(source, "trl", output)
    elif one.by == "build":
        build(source, output)
    else:
        return source
    return output


LABELS = {"label", "kto_tag", "scores", "snapshot"}


def holds_labels(one: Case) -> bool:
    """Whether a case is of single answers, of which one is good and one bad."""
    by_message = "feedback" in (one.rows[0].get("messages") or [{}])[-1]
    return len(one.rows) == 2 and (by_message or not LABELS.isdisjoint(one.rows[0]))


def texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [message["content"] for message in value]


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.source)
def test_layout_becomes_its_preference(one: Case, tmp_path: Path) -> None:
    path = made(one, tmp_path)
    if holds_labels(one):
        labels = read_labels(path).records
        assert {label.desirable: texts(label.completion) for label in labels} == {
            True: ["GOOD"], False: ["BAD"],
        }  # fmt: skip
        assert texts(labels[0].prompt) == one.prompt
        return
    (pair,) = read_pairs(path).records
    assert texts(pair.prompt) == one.prompt
    assert (texts(pair.chosen), texts(pair.rejected)) == (["GOOD"], ["BAD"])
    strength = {"margin": pair.margin, "agreement": pair.agreement}
    assert {k: v for k, v in strength.items() if v is not None} == one.known


@pytest.mark.parametrize("one", [one for one in CASES if one.by != "train"], ids=lambda c: c.source)
def test_command_that_training_names_reads_the_layout(one: Case, tmp_path: Path) -> None:
    source = saved(tmp_path / "raw.jsonl", one.rows)
    with pytest.raises(DataError, match=f"penchant data {one.by} {source} "):
        (read_labels if holds_labels(one) else read_pairs)(source)


def test_every_layout_of_the_tables_has_a_case() -> None:
    for table in (judgements.LAYOUTS, projects.LAYOUTS):
        for layout in table:
            if layout.project != "trl":
                assert any(layout.matches(one.rows[0]) for one in CASES), layout.name


PROMPTS = [
    ("MT-bench questions", {"question_id": 1, "turns": ["q", "and then?"]}),
    ("Vicuna questions", {"question_id": 1, "text": "q", "category": "c"}),
]


@pytest.mark.parametrize(("source", "row"), PROMPTS)
def test_questions_are_prompts(source: str, row: Row) -> None:
    (prompt,) = read_prompts([row]).records
    assert prompt.prompt == "q"


def test_chats_that_part_before_their_last_answer_go_on_or_end_there(tmp_path: Path) -> None:
    more = [turn("user", "and?"), turn("assistant", "so")]
    row = {"conversation_a": [USER, BAD, *more], "conversation_b": [USER, GOOD, *more]}
    source = saved(tmp_path / "a.jsonl", [{**row, "winner": "model_b"}])
    (pair,) = build(source).rows
    assert (pair["chosen"], pair["rejected"]) == ([GOOD, *more], [BAD, *more])
    (pair,) = build(source, turns="first").rows
    assert (pair["chosen"], pair["rejected"]) == ([GOOD], [BAD])


def table() -> str:
    """The table of the documentation."""
    commands = {"train": "read as it is", "convert": "`data convert`", "build": "`data build`"}
    lines = ["| Layout | Columns | |", "|---|---|---|"]
    for one in CASES:
        columns = ", ".join(f"`{name}`" for name in one.rows[0])
        lines.append(f"| {one.source} | {columns} | {commands[one.by]} |")
    for source, row in PROMPTS:
        columns = ", ".join(f"`{name}`" for name in row)
        lines.append(f"| {source} | {columns} | read as prompts |")
    return "\n".join(lines)


def test_documentation_shows_this_table() -> None:
    shown = DOCS.read_text().partition(START)[2].partition(END)[0].strip()
    assert shown == table(), "run python tests/data/converting/test_layouts.py"


if __name__ == "__main__":
    before, _, rest = DOCS.read_text().partition(START)
    DOCS.write_text(f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")
