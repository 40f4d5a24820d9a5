"""What was answered comes out as rows, whole, and never over another file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.cli.main import main
from penchant.data.read import read_pairs
from penchant.data.records import DataError
from penchant.label import export
from penchant.label.export import export_answers

from .conftest import write_pairs


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_rows_hold_the_texts_and_the_answer(tmp_path, page):
    file = write_pairs(tmp_path / "f.jsonl", 3)
    site = page(file, overlap=2)
    task = site.session.next_task("ann")
    site.answer("left", reason="shorter \u2028 ☃")
    site.post("strength", item=task.item, chosen="left", strength="2")
    site.answer("skip")
    site.answer("both_bad")
    site.answer("tie", "bob")
    done = export_answers(file, tmp_path / "out.jsonl")
    assert "wrote 3 answers to 2 items" in done.summary()
    assert "1 skip left out" in done.summary()
    written = tmp_path / "out.jsonl"
    assert f"next: penchant data build {written} --output train.jsonl" in done.summary()
    found = rows(tmp_path / "out.jsonl")
    first = found[0]
    assert first.pop("seconds") >= 0
    assert first == {
        "prompt": "prompt 0", "completion_a": "first 0", "completion_b": "second 0",
        "label": "b" if task.swapped else "a", "annotator": "ann", "strength": 2,
        "reason": "shorter \u2028 ☃", "where": "f.jsonl:1",
    }  # fmt: skip
    assert [(one["where"], one["annotator"], one["label"]) for one in found[1:]] == [
        ("f.jsonl:1", "bob", "tie"),
        ("f.jsonl:3", "ann", "both_bad"),
    ]


def test_export_of_chats_is_training_data(tmp_path, page):
    def says(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    file = tmp_path / "chat.jsonl"
    row = {
        "prompt": says("user", "q"),
        "chosen": says("assistant", "x"),
        "rejected": says("assistant", "y"),
    }
    file.write_text(json.dumps(row))
    site = page(file)
    task = site.session.next_task("ann")
    site.answer("right" if task.swapped else "left")
    export_answers(file, tmp_path / "out.jsonl")
    (pair,) = read_pairs(tmp_path / "out.jsonl").records
    (expected,) = read_pairs(file).records
    assert pair.content() == expected.content()


def test_export_works_while_the_page_is_served(tmp_path, page):
    file = write_pairs(tmp_path / "f.jsonl")
    site = page(file)
    for number in (1, 2):
        site.answer("tie")
        export_answers(file, tmp_path / f"{number}.jsonl")
        assert len(rows(tmp_path / f"{number}.jsonl")) == number


def test_export_refuses_what_it_cannot_do(tmp_path, page):
    file, out = write_pairs(tmp_path / "f.jsonl"), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="has no answers"):
        export_answers(file, out)
    assert sorted(tmp_path.iterdir()) == [file]
    page(file).answer("skip")
    with pytest.raises(DataError, match="no answers but skips"):
        export_answers(file, out)
    with pytest.raises(DataError, match=r"name in \.jsonl"):
        export_answers(file, tmp_path / "out.csv")
    out.write_text("mine")
    with pytest.raises(DataError, match="not overwritten"):
        export_answers(file, out)
    assert out.read_text() == "mine"


def test_file_that_appears_meanwhile_is_not_overwritten(tmp_path, page, monkeypatch):
    file, out = write_pairs(tmp_path / "f.jsonl"), tmp_path / "out.jsonl"
    page(file).answer("tie")
    text = export._text

    def meanwhile(pairs, answers):
        out.write_text("mine")
        return text(pairs, answers)

    monkeypatch.setattr(export, "_text", meanwhile)
    with pytest.raises(DataError, match=r"cannot write .*out\.jsonl: .* not overwritten"):
        export_answers(file, out)
    assert out.read_text() == "mine"


def test_export_from_the_command_line(tmp_path, page, capsys):
    file = write_pairs(tmp_path / "f.jsonl")
    page(file).answer("tie")
    assert main(["label", str(file), "--export", str(tmp_path / "out.jsonl")]) == 0
    assert "wrote 1 answer to 1 item" in capsys.readouterr().out
    assert main(["label", str(file), "--export", str(tmp_path / "o.jsonl"), "--overlap", "2"]) == 1
    assert "leave out --overlap" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--question=Which?", "--guidelines=rules.md", "--no_strength"])
@pytest.mark.parametrize("aim", ["--export=out.jsonl", "--judge=http://127.0.0.1:9/v1"])
def test_what_only_a_page_has_is_refused_where_none_is_opened(aim, option, tmp_path, capsys):
    file = write_pairs(tmp_path / "f.jsonl")
    assert main(["label", str(file), aim, option]) == 1
    assert f"leave out {option.partition('=')[0]}" in capsys.readouterr().err
