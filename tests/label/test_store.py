"""Answers are kept as given: once, in order, for the file they were given to."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from penchant.data.records import DataError
from penchant.label import store as storing
from penchant.label.store import Answer, Store, Task


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(tmp_path / "answers.sqlite", "print")
    yield opened
    opened.close()


def next_item(
    store: Store, annotator: str = "ann", overlap: int = 1, number: int = 4
) -> Task | None:
    return store.next_task(annotator, number, overlap, lambda item: item % 2 == 1)


def answer_next(store: Store, side: str, annotator: str = "ann", overlap: int = 1, **more) -> int:
    task = next_item(store, annotator, overlap)
    assert task is not None
    assert store.answer(annotator, task.item, side, **more)
    return task.item


def labels(store: Store) -> list[tuple[int, str, str]]:
    return [(one.item, one.annotator, one.label) for one in store.answers()]


def test_left_and_right_become_the_completions_that_were_there(store: Store):
    """Items 1 and 3 are swapped: completion b is on the left."""
    for side in ("left", "left", "right", "right"):
        answer_next(store, side)
    assert [label for _, _, label in labels(store)] == ["a", "b", "b", "a"]


def test_answer_carries_its_strength_reason_and_time(store: Store):
    answer_next(store, "left", reason="clearer")
    assert store.unweighed("ann", 0) == Task(0, False, chosen="left")
    assert store.weigh("ann", 0, "left", 3)
    (one,) = store.answers()
    assert one == Answer(0, "ann", "a", 3, "clearer", one.seconds, False)
    assert 0 <= one.seconds < 5


def test_strength_belongs_to_a_decision(store: Store):
    answer_next(store, "tie")
    assert store.unweighed("ann", 0) is None
    assert not store.weigh("ann", 0, "left", 3)
    answer_next(store, "right")
    assert store.unweighed("ann", 1) == Task(1, True, chosen="right")
    assert store.weigh("ann", 1, "right", 1)
    assert not store.weigh("ann", 1, "right", 2), "it was said"
    assert [one.strength for one in store.answers()] == [None, 1]


def test_strength_of_a_decision_that_was_taken_back_is_not_that_of_the_next(store: Store):
    """Also of item 1, whose completion b is on the left."""
    for item in (0, 1):
        answer_next(store, "left")
        store.undo("ann", item)
        assert answer_next(store, "right") == item
        assert not store.weigh("ann", item, "left", 3), "it was asked of the left one"
        assert store.weigh("ann", item, "right", 1)
    assert [(one.label, one.strength) for one in store.answers()] == [("b", 1), ("a", 1)]


def test_item_waits_until_it_is_answered(store: Store):
    assert next_item(store) == next_item(store) == Task(0, False)


def test_second_answer_to_one_item_is_refused_and_the_first_stays(store: Store):
    answer_next(store, "left")
    assert not store.answer("ann", 0, "right")
    assert not store.answer("ann", 3, "right"), "it was never shown"
    assert labels(store) == [(0, "ann", "a")]


def test_what_is_taken_back_waits_before_others_and_keeps_the_order_of_the_sides(store: Store):
    answer_next(store, "left", reason="first")
    answer_next(store, "left", reason="second")
    store.weigh("ann", 1, "left", 2)
    assert next_item(store) == Task(2, False)
    assert store.undo("ann", 1)
    assert next_item(store) == Task(1, True, "second")
    assert store.undo("ann", 0)
    assert next_item(store) == Task(0, False, "first")
    assert not store.undo("ann", 0)
    assert not store.undo("ann", 2), "it is not answered"
    assert labels(store) == []
    assert [answer_next(store, "tie") for _ in range(4)] == [0, 1, 2, 3]
    assert next_item(store) is None


def test_undo_takes_back_ones_own_answers_only(store: Store):
    answer_next(store, "left", "ann")
    assert not store.undo("bob", 0)
    assert labels(store) == [(0, "ann", "a")]


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_each_item_gets_as_many_answers_as_are_wanted(store: Store, overlap: int):
    names = ["ann", "bob", "cyd"]
    for _ in range(4):
        for name in names:
            if next_item(store, name, overlap) is not None:
                answer_next(store, "left", name, overlap)
    by_item = [item for item, _, _ in labels(store)]
    assert all(by_item.count(item) == overlap for item in range(4))
    assert store.num_complete(overlap) == 4


def test_two_annotators_are_not_shown_the_same_item_at_once(store: Store):
    assert next_item(store, "ann") == Task(0, False)
    assert next_item(store, "bob") == Task(1, True)


def test_item_left_open_goes_to_another_after_half_an_hour(store: Store, monkeypatch):
    next_item(store, "ann")
    now = storing.time.time()
    monkeypatch.setattr(storing.time, "time", lambda: now + storing.CLAIM_SECONDS + 1)
    assert next_item(store, "bob") == Task(0, False)


def test_skipped_item_goes_to_another_and_does_not_come_back(store: Store):
    assert answer_next(store, "skip", "ann") == 0
    assert answer_next(store, "left", "bob") == 0
    assert next_item(store, "ann") == Task(1, True)
    assert store.num_complete(1) == 1


def test_answers_are_there_when_opened_again(store: Store):
    answer_next(store, "right", reason="é\U0001f600")
    again = Store(store.path, "print")
    assert [one.reason for one in again.answers()] == ["é\U0001f600"]
    again.close()


def test_every_commit_waits_for_the_disk(store: Store):
    assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_answers_to_another_file_are_refused_with_their_number(store: Store):
    answer_next(store, "left")
    with pytest.raises(DataError, match=r"changed since 1 answer .* restore the file"):
        Store(store.path, "other")


@pytest.mark.parametrize("content", [b"no database, but text" * 100, None])
def test_file_that_is_not_such_a_database_is_refused(tmp_path: Path, content: bytes | None):
    path = tmp_path / "x.sqlite"
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE t (x)")
        other.close()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="database of penchant label"):
        Store(path, "print")


def test_folder_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"none/x\.sqlite"):
        Store(tmp_path / "none" / "x.sqlite", "print")
