"""A model as an annotator: both orders, ties where the order decides, and going on."""

from __future__ import annotations

import json
import multiprocessing
import threading
from contextlib import suppress

import pytest

from penchant.core.errors import ConfigError
from penchant.label import judge as judge_module
from penchant.label.export import export_answers
from penchant.label.judge import annotator_name, judge_pairs
from penchant.label.session import MAX_NAME, open_session


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


@pytest.fixture
def settings(judge, tmp_path):
    file = tmp_path / "judge.yaml"
    file.write_text(f"url: {judge.url}\nretries: 0\n")
    return file


def written(file, rows):
    file.write_text("".join(
        json.dumps({"prompt": "Say", "completion_a": a, "completion_b": b}) + "\n" for a, b in rows
    ))  # fmt: skip
    return file


def test_a_judge_answers_in_both_orders_and_goes_on_where_it_stopped(judge, settings, tmp_path):
    rows = [("one *", "two **"), ("three ***", "none"), ("even *", "as even *"), ("what?", "*")]
    file = written(tmp_path / "pairs.jsonl", rows)
    found = judge_pairs(file, str(settings))
    assert (found.annotator, found.answered, found.contradicted, found.failed) == (
        "judge stars", 3, 1, 1
    )  # fmt: skip
    assert "in 1 of them (33%) the verdict followed the order" in found.summary()
    assert {pair for pair in map(answers_in, judge.asked) if "?" not in "".join(pair)} == {
        pair for row in rows[:3] for pair in (row, row[::-1])
    }
    export_answers(file, tmp_path / "answers.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(a["label"], a["annotator"]) for a in answers] == [
        ("b", "judge stars"), ("a", "judge stars"), ("tie", "judge stars")
    ]  # fmt: skip
    assert answers[2]["reason"] == "the verdict follows the order: a, then a"


def test_a_pair_without_a_verdict_is_asked_about_again_and_a_silent_judge_is_an_error(
    judge, settings, tmp_path, monkeypatch
):
    silent = True
    reply = judge.answer
    judge.answer = lambda text: "No." if silent and "late" in text else reply(text)
    rows = [("one *", "two **"), ("late *", "later"), ("late **", "x"), ("four", "five *")]
    file = written(tmp_path / "pairs.jsonl", rows)
    monkeypatch.setattr(judge_module, "_mixed", lambda num: list(range(num)))
    few_at_once(monkeypatch, settings)
    first = judge_pairs(file, str(settings))
    assert (first.answered, first.failed) == (2, 2)
    assert "2 pairs without a verdict: start it again" in first.summary()
    with pytest.raises(ConfigError, match=r"any of 2 pairs \(.*'No.'\); its 2 answers so far"):
        judge_pairs(file, str(settings))
    assert answers(file) == {0: "b", 3: "b"}
    silent = False
    again = judge_pairs(file, str(settings))
    assert (again.answered, again.before, again.failed) == (2, 2, 0)
    assert answers(file) == {0: "b", 1: "a", 2: "a", 3: "b"}
    num_asked = len(judge.asked)
    assert judge_pairs(file, str(settings)).answered == 0
    assert len(judge.asked) == num_asked

    # Several in a row that fail end it, though earlier ones had verdicts.
    silent = True
    file = written(tmp_path / "more.jsonl", [rows[0], rows[3], rows[1], rows[2]])
    with pytest.raises(ConfigError, match="no verdict on any of 2 pairs"):
        judge_pairs(file, str(settings))
    assert answers(file) == {0: "b", 1: "b"}


def few_at_once(monkeypatch, settings):
    monkeypatch.setattr(judge_module, "BATCH", 2)
    monkeypatch.setattr(judge_module, "SILENT", 2)
    settings.write_text(f"{settings.read_text()}concurrency: 2\n")


def test_pairs_that_cannot_be_judged_do_not_keep_the_others_from_being_judged(
    judge, settings, tmp_path, monkeypatch
):
    few_at_once(monkeypatch, settings)
    rows = [
        ("what?", "why?"),
        ("how?", "who?"),
        ("when?", "where?"),
        ("one *", "1"),
        ("2", "two *"),
    ]
    file = written(tmp_path / "pairs.jsonl", rows)
    for _ in range(50):  # each of them ends when it meets two in a row that cannot be judged
        with suppress(ConfigError):
            judge_pairs(file, str(settings))
    assert answers(file) == {3: "a", 4: "b"}


def test_a_file_is_judged_in_one_name_by_one_process_and_by_the_next_when_that_was_killed(
    judge, settings, tmp_path
):
    file = written(tmp_path / "pairs.jsonl", [(f"{i} *", "two") for i in range(40)])
    fork = multiprocessing.get_context("fork")
    own = fork.Process(target=judge_pairs, args=(file, str(settings)))
    reply, asked, ended = judge.answer, threading.Event(), threading.Event()
    judge.answer = lambda text: asked.set() or (ended.wait(60) and reply(text))
    own.start()
    assert asked.wait(60)
    with pytest.raises(ConfigError, match="another process has judge stars judge the pairs"):
        judge_pairs(file, str(settings))
    store = open_session(file).store
    left = store.claim("ann", range(40), 1, 40)
    assert len(left) == 40 - judge_module.BATCH  # it holds no more than it is at
    store.release("ann", left)
    store.close()
    own.kill()
    own.join()
    ended.set()
    assert judge_pairs(file, str(settings)).answered == 40


def test_a_pair_that_was_answered_meanwhile_is_not_counted(judge, settings, tmp_path):
    file = written(tmp_path / "pairs.jsonl", [("one *", "two")])
    reply = judge.answer

    def answer(text):
        store = open_session(file).store
        store.answer("judge stars", 0, "tie")
        store.close()
        return reply(text)

    judge.answer = answer
    assert judge_pairs(file, str(settings)).answered == 0
    assert answers(file) == {0: "tie"}


def test_only_pairs_that_others_left_open_are_judged(judge, settings, tmp_path):
    file = written(tmp_path / "pairs.jsonl", [(f"{i} *", f"{i}") for i in range(6)])
    store = open_session(file).store
    for item in range(4):
        assert store.next_task("ann", 6, 1, lambda _: False).item == item
        if item < 3:  # the fourth is on her page still
            store.answer("ann", item, "tie")
    store.close()
    assert judge_pairs(file, str(settings)).answered == 2
    assert {pair[0][0] for pair in map(answers_in, judge.asked)} == {"4", "5"}
    assert judge_pairs(file, str(settings), overlap=2).answered == 4


def test_what_is_before_a_judge_is_not_shown_to_people_meanwhile(judge, settings, tmp_path):
    file = written(tmp_path / "pairs.jsonl", [("a *", "b"), ("late *", "c")])
    reply, shown = judge.answer, []

    def answer(text):
        store = open_session(file).store
        shown.append(store.next_task("ann", 2, 1, lambda _: False))
        store.close()
        return "No." if "late" in text else reply(text)

    judge.answer = answer
    judge_pairs(file, str(settings))
    assert shown == [None] * 4
    store = open_session(file).store
    assert store.next_task("ann", 2, 1, lambda _: False).item == 1  # the failed one is free
    store.close()


def test_long_names_of_models_stay_apart():
    one, other = (annotator_name(f"owner/a-model-with-a-very-long-name-{i}") for i in "12")
    assert annotator_name("m") == "judge m"
    assert one != other
    assert len(one) == len(other) == MAX_NAME
    assert one.startswith("judge owner/a-model-with-a-very")


def answers(file):
    """The judge's answers by item."""
    store = open_session(file).store
    found = {one.item: one.label for one in store.answers()}
    store.close()
    return found
