"""Raw feedback and other projects' layouts are refused by name, with the command to run."""

from __future__ import annotations

import json
import shlex

import pytest

from penchant.audit import inspect
from penchant.cli.main import main
from penchant.data.read import read_labels, read_pairs
from penchant.data.records import DataError

SIDES = {"prompt": "p?", "completion_a": "yes", "completion_b": "no"}
TURN = {"role": "user", "content": "p?"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
HEARD = [{"from": "human", "value": "p?"}]
ROWS = {
    "votes": ({**SIDES, "votes": ["a", "b", "a"]}, "votes", "build"),
    "ratings": (
        {"prompt": "p?", "completions": ["yes", "no"], "ratings": [5, 1]},
        "ratings",
        "build",
    ),
    "ratings within": (
        {
            "instruction": "p?",
            "completions": [
                {"response": "yes", "overall_score": 5},
                {"response": "no", "overall_score": 1},
            ],
        },
        "ratings",
        "build",
    ),
    "ranking": (
        {"prompt": "p?", "completions": ["yes", "no"], "ranks": [1, 2]},
        "ranking",
        "build",
    ),
    "chats": ({"messages": [TURN, NO, YES]}, "chats", "build"),
    "axolotl": ({"messages": [TURN], "chosen": YES, "rejected": NO}, "axolotl", "convert"),
    "axolotl, lists": (
        {"messages": [TURN], "chosen": [YES], "rejected": [NO]},
        "axolotl",
        "convert",
    ),
    "intel": (
        {"system": "s", "question": "p?", "chosen": "yes", "rejected": "no"},
        "axolotl",
        "convert",
    ),
    "sharegpt": (
        {
            "conversations": HEARD,
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        "llama-factory",
        "convert",
    ),
    "alpaca": (
        {"instruction": "p?", "input": "", "chosen": "yes", "rejected": "no"},
        "llama-factory",
        "convert",
    ),
    "openai": (
        {
            "input": {"messages": [TURN]},
            "preferred_output": [YES],
            "non_preferred_output": [NO],
        },
        "openai",
        "convert",
    ),
}
READERS = {"pairs": read_pairs, "labels": read_labels, "inspect": inspect}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ROWS)
def test_layout_is_named_and_the_command_makes_it_readable(
    tmp_path, monkeypatch, capsys, name, reader
):
    row, layout, tool = ROWS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError, match=layout) as refused:
        READERS[reader]("raw.jsonl")
    command = str(refused.value).splitlines()[-1]
    assert command.strip().startswith(f"penchant data {tool} raw.jsonl ")
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert len(read_pairs("pairs.jsonl").records) == 1


def test_labels_of_another_project_become_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = [*HEARD, {"from": "gpt", "value": "yes"}]
    rows = [{"conversations": said, "kto_tag": tag} for tag in (True, False)]
    write(tmp_path / "raw.jsonl", rows)
    with pytest.raises(DataError, match="llama-factory") as refused:
        read_labels("raw.jsonl")
    assert main(shlex.split(str(refused.value).splitlines()[-1])[1:]) == 0
    assert len(read_labels("labels.jsonl").records) == 2


def test_columns_of_several_layouts_are_all_named(tmp_path):
    row = {"conversations": [], "messages": [], "chosen": "yes", "rejected": "no"}
    path = write(tmp_path / "raw.jsonl", [row])
    with pytest.raises(DataError) as refused:
        read_pairs(path)
    assert "axolotl" in str(refused.value)
    assert "--from axolotl or --from llama-factory" in str(refused.value)


def test_columns_that_parquet_readers_pass_over_are_seen(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "raw.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([ROWS["axolotl"][0]]), path)
    with pytest.raises(DataError, match=r"penchant data convert .*raw\.parquet --to trl"):
        read_pairs(path)


def test_unknown_columns_and_broken_rows_keep_their_own_error(tmp_path):
    path = write(tmp_path / "raw.jsonl", [{"text": "nothing"}, {**SIDES, "label": "neither"}])
    with pytest.raises(DataError, match="recognised layouts"):
        read_pairs(path)
