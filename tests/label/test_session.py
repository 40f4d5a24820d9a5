"""A file is opened for labelling: what it may hold, who may answer, how sides are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.core.errors import ConfigError
from penchant.data.read import OtherKindError
from penchant.data.records import DataError
from penchant.label.session import open_session

from .conftest import write_pairs


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_without_a_label_and_ties_are_compared(tmp_path: Path):
    texts = {"prompt": "p", "completion_a": "one", "completion_b": "two"}
    rows = [texts, *({**texts, "label": label} for label in ("tie", "b", "nonsense"))]
    session = open_session(jsonl(tmp_path / "f.jsonl", *rows))
    assert [(one.chosen, one.rejected) for one in session.data.records] == [("one", "two")] * 4
    assert session.data.layout == "prompt, completion_a, completion_b (text)"


def test_ratings_do_not_decide_which_rows_are_compared(tmp_path: Path):
    row = {"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": "?"}
    assert len(open_session(jsonl(tmp_path / "f.jsonl", row)).data.records) == 1


def test_rows_that_cannot_be_trained_on_are_refused_by_name(tmp_path: Path):
    file = write_pairs(tmp_path / "f.jsonl", completion_a="")
    assert "1 refused: empty completion" in open_session(file).data.summary()
    with pytest.raises(DataError, match="strict allows no refusal"):
        open_session(file, strict=True)


def test_single_completions_are_an_error_that_says_what_a_row_needs(tmp_path: Path):
    file = jsonl(tmp_path / "f.jsonl", {"prompt": "p", "completion": "c", "label": True})
    with pytest.raises(OtherKindError, match="completion_a, completion_b"):
        open_session(file)


def test_nothing_is_fetched_from_the_hub(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file: owner/name"):
        open_session("owner/name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 0}, "overlap must be at least 1, got 0"),
        (
            {"overlap": 3, "annotators": ["ann", "bob"]},
            "at most 2, the number of annotators, got 3",
        ),
        ({"annotators": ["ann", "ann "]}, "must differ"),
        ({"annotators": ["ann", ""]}, "1 to 40 printable characters, got ''"),
        ({"annotators": ["a\nb"]}, "printable"),
    ],
)
def test_impossible_options_are_refused_before_a_database_is_made(tmp_path, options, message):
    file = write_pairs(tmp_path / "f.jsonl")
    with pytest.raises(ConfigError, match=message):
        open_session(file, **options)
    assert list(tmp_path.iterdir()) == [file]


def test_sides_are_drawn_evenly_by_item_and_annotator_and_the_same_again(tmp_path: Path):
    def sides(name: str, annotator: str, seed: int) -> list[bool]:
        file = write_pairs(tmp_path / name, 200)
        session = open_session(file, overlap=2, seed=seed)
        drawn = []
        while task := session.next_task(annotator):
            drawn.append(task.swapped)
            session.store.answer(annotator, task.item, "tie")
        return drawn

    first = sides("1.jsonl", "ann", 0)
    assert 70 < sum(first) < 130
    assert first == sides("2.jsonl", "ann", 0)
    assert first != sides("1.jsonl", "bob", 0)
    assert first != sides("3.jsonl", "ann", 1)


def test_file_that_changed_is_refused_and_a_renamed_label_is_no_change(tmp_path: Path):
    file = write_pairs(tmp_path / "f.jsonl")
    open_session(file)
    file.write_text(
        file.read_text().replace('"prompt": "prompt 0"', '"label": "a", "prompt": "prompt 0"')
    )
    open_session(file)
    file.write_text(file.read_text().replace("first 2", "first two"))
    with pytest.raises(DataError, match=r"f\.jsonl\.labels\.sqlite.*restore the file"):
        open_session(file)
