"""Judged completions from every source; pairs among them only where that is asked for."""

from __future__ import annotations

import csv
import json

import pytest

from penchant.data.read import OtherKindError, read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import DataError, Label

ROWS = [
    {"prompt": f"question {n}", "completion": f"answer {n}", "label": bool(n % 2)} for n in range(4)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ],
        "label": row["label"],
    }
    for row in ROWS
]
PAIRS = [{"prompt": f"question {n}", "chosen": "good", "rejected": "bad"} for n in range(3)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
            writer.writerow(cells)
    return path


@pytest.mark.parametrize("rows", [ROWS, CHATS], ids=["text", "chat"])
def test_every_source_gives_the_same_labels(tmp_path, rows):
    datasets = pytest.importorskip("datasets")
    expected = read_labels(rows)
    assert len(expected.records) == 4
    dataset = datasets.Dataset.from_list([{**row, "extra": 1} for row in rows])
    dataset.to_parquet(str(tmp_path / "l.parquet"))
    (tmp_path / "l.json").write_text(json.dumps(rows))
    sources = [jsonl(tmp_path / "l.jsonl", rows), table(tmp_path / "l.csv", rows)]
    for source in [*sources, tmp_path / "l.parquet", tmp_path / "l.json", dataset]:
        found = read_labels(source, strict=True)
        assert found.fingerprint == expected.fingerprint
        assert found.layout == expected.layout
    assert read_labels(sources[0]).records[1] == Label(
        *(expected.records[1].prompt, expected.records[1].completion), True, "l.jsonl:2"
    )


@pytest.mark.parametrize("values", [(1, 0), (1.0, 0.0), ("good", "bad"), (1, -1), ("👍", "👎")])
def test_labels_in_a_table_are_understood(tmp_path, values):
    rows = [{**row, "label": values[not row["label"]]} for row in ROWS]
    found = read_labels(table(tmp_path / "l.csv", rows))
    assert found.fingerprint == read_labels(ROWS).fingerprint


def test_refused_rows_are_counted_by_reason_and_the_classes_in_the_summary():
    found = read_labels([*ROWS, {**ROWS[0], "label": "maybe"}, {**ROWS[0], "completion": ""}])
    assert (len(found.records), found.ties) == (4, 0)
    assert [(one.where, one.reason) for one in found.refused] == [
        ("list:5", "unknown label"),
        ("list:6", "empty completion"),
    ]
    assert found.summary().splitlines()[0] == (
        "read 4 labels (2 desirable, 2 undesirable) from the list, "
        "layout: prompt, completion, label (text); 2 rows refused"
    )
    assert "1 refused: unknown label\n    list:5: 'label' must be one of" in found.summary()


def test_strict_names_file_row_and_what_is_wrong(tmp_path):
    path = jsonl(tmp_path / "l.jsonl", [*ROWS, {**ROWS[0], "label": "maybe"}])
    with pytest.raises(DataError, match=r"(?s)1 refused row.*l\.jsonl:5: unknown label.*'maybe'"):
        read_labels(path, strict=True)


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (True, "4 labels, all of them desirable; both classes are needed, so add undesirable"),
        (False, "4 labels, all of them undesirable; both classes are needed, so add desirable"),
    ],
)
def test_labels_of_one_class_are_an_error_that_says_which_is_lacking(tmp_path, label, told):
    path = jsonl(tmp_path / "l.jsonl", [{**row, "label": label} for row in ROWS])
    with pytest.raises(DataError, match=told) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("unpair", [False, True])
def test_no_usable_row_is_an_error_with_the_layouts(unpair):
    with pytest.raises(DataError) as caught:
        read_labels([{"remark": "?"}] * 2, unpair=unpair)
    assert "no row of the list is a labelled completion" in str(caught.value)
    assert "2 refused" in str(caught.value)
    assert "messages, label (chat)" in str(caught.value)
    assert ("prompt, chosen, rejected (text)" in str(caught.value)) is unpair
    with pytest.raises(DataError, match="holds no rows; give data with at least one labelled"):
        read_labels([], unpair=unpair)


def test_pairs_are_refused_with_both_ways_to_use_them(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", PAIRS)
    with pytest.raises(OtherKindError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(f"{path} holds pairs (layout: prompt, chosen, rejected")
    assert "set unpair" in str(caught.value)
    command = f"penchant data convert {path} --to labels --output labels.jsonl"
    assert command in str(caught.value)
    with pytest.raises(OtherKindError, match=r"the list holds pairs.*convert FILE --to labels"):
        read_labels([{"question": "?"}, *PAIRS])


def test_labels_given_as_pairs_are_refused_with_both_ways_to_use_them(tmp_path):
    path = jsonl(tmp_path / "l.jsonl", [{"question": "?"}, *ROWS])
    with pytest.raises(OtherKindError) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path} holds labels of single completions (layout: ")
    assert "method kto" in str(caught.value)
    command = f"penchant data convert {path} --to pairs --output pairs.jsonl"
    assert command in str(caught.value)


def test_a_stray_row_of_the_other_kind_is_only_refused():
    assert len(read_pairs([ROWS[0], *PAIRS]).records) == 3
    found = read_labels([PAIRS[0], *ROWS])
    assert (len(found.records), found.refused[0].where) == (4, "list:1")


def test_unpair_makes_two_adjacent_labels_of_each_pair_and_counts_what_is_left_out():
    voted = {"prompt": "q", "completion_a": "x", "completion_b": "y"}
    rows = [{**voted, "label": label} for label in ("b", "tie", "c", "a")]
    found = read_labels(rows, unpair=True)
    assert [(one.completion, one.desirable, one.where) for one in found.records] == [
        ("y", True, "list:1"),
        ("x", False, "list:1"),
        ("x", True, "list:4"),
        ("y", False, "list:4"),
    ]
    assert (found.ties, len(found.refused)) == (1, 1)
    assert found.layout == "prompt, completion_a, completion_b, label (text)"
    assert "(2 desirable, 2 undesirable)" in found.summary()
    assert "1 tie left out; 1 row refused" in found.summary()


def test_unpair_leaves_labels_as_they_are_and_mixes_neither_kind():
    assert read_labels(ROWS, unpair=True) == read_labels(ROWS)
    found = read_labels([*PAIRS, ROWS[0]], unpair=True)
    assert len(found.records) == 6
    assert [one.where for one in found.refused] == ["list:4"]
    found = read_labels([*ROWS, PAIRS[0]], unpair=True)
    assert (len(found.records), [one.where for one in found.refused]) == (4, ["list:5"])


def test_margins_and_votes_survive_a_table_and_a_blank_cell_is_none(tmp_path):
    rows = [
        {"margin": "1.5", "votes": '["a", "a", "tie", "b"]'},
        {"margin": "", "votes": ""},
        {"margin": "much", "votes": "a, a"},
        {"margin": "-1", "votes": "[a]"},
        {"margin": " ", "votes": "3"},
    ]
    row = {"prompt": "q", "completion_a": "x", "completion_b": "y", "label": "a"}
    found = read_pairs(table(tmp_path / "p.csv", [{**row, **one} for one in rows]))
    known = [(pair.margin, pair.agreement) for pair in found.records]
    assert known == [(1.5, 0.5), (None, None), (None, None)]
    assert [(one.where, one.reason) for one in found.refused] == [
        ("p.csv:4", "wrong type"),
        ("p.csv:5", "negative margin"),
    ]


def test_margins_of_a_dataset_are_read_with_its_pairs():
    datasets = pytest.importorskip("datasets")
    rows = [{**row, "score_chosen": 3.0, "score_rejected": None} for row in PAIRS]
    rows[0]["score_rejected"] = 1.0
    found = read_pairs(datasets.Dataset.from_list(rows), strict=True)
    assert [pair.margin for pair in found.records] == [2.0, None, None]


def test_pandalms_votes_give_its_agreement(shared):
    pairs = read_pairs(shared / "data" / "pandalm.jsonl").records
    assert {round(pair.agreement, 2) for pair in pairs} == {0.67, 1.0}
    labels = read_labels(shared / "data" / "pandalm.jsonl", unpair=True)
    assert (len(labels.records), labels.ties) == (1684, 103)
