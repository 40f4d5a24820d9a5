"""A model as an annotator: both orders, ties where the order decides, and going on."""

from __future__ import annotations

import json

import pytest

from penchant.label.export import export_answers
from penchant.label.judge import judge_pairs


@pytest.fixture
def judge(serve_chat):
    """Prefers the answer with more stars, and the first one where both have as many."""

    def answer(text):
        a, b = answers_in(text)
        verdict = "B" if b.count("*") > a.count("*") else "A"
        return "No." if "?" in a + b else f"The other said Verdict: tie.\nVerdict: {verdict}"

    return serve_chat(answer, model="stars")


def answers_in(text):
    a, b = text.replace("Answer B:", "Answer A:").split("Answer A:")[1:]
    return a.strip(), b.strip()


def test_a_judge_answers_in_both_orders_and_goes_on_where_it_stopped(judge, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [("one *", "two **"), ("three ***", "none"), ("even *", "as even *"), ("what?", "*")]
    file.write_text("".join(
        json.dumps({"prompt": "Say", "completion_a": a, "completion_b": b}) + "\n" for a, b in rows
    ))  # fmt: skip
    settings = tmp_path / "judge.yaml"
    settings.write_text(f"url: {judge.url}\nretries: 0\n")
    found = judge_pairs(file, str(settings))
    assert (found.annotator, found.answered, found.contradicted, found.failed) == (
        "judge stars", 3, 1, 1
    )  # fmt: skip
    assert "in 1 of them (33%) the verdict followed the order" in found.summary()
    assert {pair for pair in map(answers_in, judge.asked) if "?" not in "".join(pair)} == {
        pair for row in rows[:3] for pair in (row, row[::-1])
    }
    again = judge_pairs(file, str(settings))
    assert (again.answered, again.before) == (0, 4)
    assert len(judge.asked) == 8

    export_answers(file, tmp_path / "answers.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(a["label"], a["annotator"]) for a in answers] == [
        ("b", "judge stars"), ("a", "judge stars"), ("tie", "judge stars")
    ]  # fmt: skip
    assert answers[2]["reason"] == "the verdict follows the order: a, then a"
