"""Pairs become labels and labels pairs, in memory, in files and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.cli.main import main
from penchant.data.converting.convert import convert
from penchant.data.read import read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import DataError

PAIRS = [{"prompt": f"q {n} ☃", "chosen": "good\u2028", "rejected": "bad"} for n in range(3)]
CHAT_PAIRS = [
    {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label(prompt, completion, desirable):
    return {"prompt": prompt, "completion": completion, "label": desirable}


def converted(folder, rows, to):
    """The rows that the conversion of rows to labels or pairs writes, and how many were alone."""
    output = folder / f"{to}.jsonl"
    done = convert(jsonl(folder / "given.jsonl", rows), to, output)
    return [json.loads(line) for line in output.read_text().splitlines()], done.alone


WORDS = st.text("ab", min_size=1, max_size=4)
CHATS = WORDS.map(lambda text: [{"role": "assistant", "content": text}])


@given(st.data(), st.booleans())
def test_pairs_of_unique_prompts_survive_the_way_to_labels_and_back(data, chat):
    prompts = data.draw(st.lists(WORDS, unique=True, min_size=1, max_size=5))
    sides = st.lists(CHATS if chat else WORDS, min_size=2, max_size=2, unique_by=str)
    pairs = []
    for prompt in prompts:
        chosen, rejected = data.draw(sides)
        asked = [{"role": "user", "content": prompt}] if chat else prompt
        pairs.append({"prompt": asked, "chosen": chosen, "rejected": rejected})
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        labels, _ = converted(Path(one), pairs, "labels")
        assert [row["label"] for row in labels] == [True, False] * len(pairs)
        assert converted(Path(one), labels, "pairs") == (pairs, 0)
        back, alone = converted(Path(other), labels[::-1], "pairs")
        assert (sorted(map(repr, back)), alone) == (sorted(map(repr, pairs)), 0)


def test_each_desirable_completion_meets_each_undesirable_one_of_its_prompt_in_order(tmp_path):
    labels = [
        label("p", "bad 1", False),
        label("q", "lonely", True),
        label("p", "good 1", True),
        label("p", "good 2", True),
        label("p", "bad 2", False),
    ]
    pairs, alone = converted(tmp_path, labels, "pairs")
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("good 1", "bad 1"),
        ("good 1", "bad 2"),
        ("good 2", "bad 1"),
        ("good 2", "bad 2"),
    ]
    assert alone == 1


def test_a_completion_judged_both_ways_is_no_pair_with_itself(tmp_path):
    labels = [label("p", "same", True), label("p", "same", False)]
    with pytest.raises(DataError, match="both a desirable and an undesirable completion"):
        converted(tmp_path, labels, "pairs")
    pairs, alone = converted(tmp_path, [*labels, label("p", "bad", False)], "pairs")
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("same", "bad")]
    assert alone == 1


def test_a_chat_prompt_is_not_the_text_that_says_the_same(tmp_path):
    chat = [{"role": "user", "content": "p"}]
    answer = [{"role": "assistant", "content": "x"}]
    with pytest.raises(DataError, match="both a desirable and an undesirable completion"):
        converted(tmp_path, [label(chat, answer, True), label("p", "y", False)], "pairs")


@pytest.mark.parametrize("rows", [PAIRS, CHAT_PAIRS], ids=["text", "chat"])
def test_files_survive_the_way_to_labels_and_back(tmp_path, rows):
    source = jsonl(tmp_path / "pairs.jsonl", rows)
    done = convert(source, "labels", tmp_path / "labels.jsonl")
    labels = read_labels(tmp_path / "labels.jsonl", strict=True).records
    assert sum(label.desirable for label in labels) == len(rows)
    assert done.summary() == (
        f"{read_pairs(source).summary()}\n"
        f"wrote {2 * len(rows)} labels to {tmp_path / 'labels.jsonl'}"
    )
    convert(tmp_path / "labels.jsonl", "pairs", tmp_path / "back.jsonl")
    assert read_pairs(tmp_path / "back.jsonl").fingerprint == read_pairs(source).fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "back.jsonl",
        "labels.jsonl",
        "pairs.jsonl",
    ]


LABELS = [
    {"prompt": "p", "completion": "good", "label": True},
    {"prompt": "p", "completion": "bad", "label": False},
    {"prompt": "q", "completion": "lonely", "label": True},
]


def test_command_prints_what_was_read_refused_written_and_left_out(tmp_path, capsys):
    source = jsonl(tmp_path / "l.jsonl", [*LABELS, {**LABELS[0], "label": "maybe"}])
    output = tmp_path / "p.jsonl"
    assert main(["data", "convert", str(source), "--to", "pairs", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "read 3 labels (2 desirable, 1 undesirable)" in out
    assert "l.jsonl:4: 'label' must be one of" in out
    assert f"wrote 1 pair to {output}; 1 label left out" in out
    assert json.loads(output.read_text()) == {"prompt": "p", "chosen": "good", "rejected": "bad"}


def test_command_takes_split_and_strict(tmp_path, capsys):
    (tmp_path / "p.json").write_text(json.dumps({"train": PAIRS[:1], "test": [*PAIRS, {}]}))
    command = ["data", "convert", str(tmp_path / "p.json"), "--to=labels"]
    output = tmp_path / "out.jsonl"
    assert main([*command, "--output", str(output), "--split", "test", "--strict"]) == 1
    assert "p.json:4" in capsys.readouterr().err
    assert not output.exists()
    assert main([*command, "--output", str(output), "--split", "test"]) == 0
    assert len(output.read_text().splitlines()) > 0
    assert len(read_labels(output).records) == 6


def test_existing_output_is_not_overwritten(tmp_path, capsys):
    source, output = jsonl(tmp_path / "p.jsonl", PAIRS), tmp_path / "out.jsonl"
    output.write_text("precious")
    command = ["data", "convert", str(source), "--to", "labels", "--output", str(output)]
    assert main(command) == 1
    assert f"penchant: {output} exists and is not overwritten" in capsys.readouterr().err
    assert output.read_text() == "precious"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("out.csv", "give output a name in .jsonl"),
        ("no-such-folder/out.jsonl", "no-such-folder does not exist"),
    ],
)
def test_output_that_cannot_be_is_named_before_anything_is_read(tmp_path, output, told):
    with pytest.raises(DataError, match=told):
        convert(tmp_path / "not-read.jsonl", "labels", tmp_path / output)


def test_full_disk_names_the_output_and_leaves_none(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penchant.core.atomic.flush_to_disk", fail)
    source, output = jsonl(tmp_path / "p.jsonl", PAIRS), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"cannot write .*out\.jsonl: No space left on device"):
        convert(source, "labels", output)
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(("rows", "to"), [(PAIRS, "pairs"), (LABELS, "labels")])
def test_source_of_the_kind_asked_for_is_left_alone(tmp_path, rows, to):
    source = jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=rf"d\.jsonl holds {to} already; there is nothing to conv"):
        convert(source, to, tmp_path / "out.jsonl")


def test_labels_that_make_no_pair_are_an_error_with_the_alternative(tmp_path):
    source = jsonl(tmp_path / "l.jsonl", LABELS[1:])
    with pytest.raises(DataError, match=r"no prompt of .*l\.jsonl has both .* method kto"):
        convert(source, "pairs", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "TOOL"),
        (["convert"], "FILE"),
        (["convert", "p.jsonl", "--to", "labels"], "--output"),
        (["convert", "p.jsonl", "--to", "triples", "--output", "o"], "triples"),
        (["convert", "p.jsonl", "--to", "labels", "--output", "o.jsonl"], "no such file: p.jsonl"),
        (["convert", "p", "--to", "labels", "--output", "o", "--bta"], "--bta"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_on_the_command_line_ends_in_one_line(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 1
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("penchant: ")
    assert err.count("\n") == 1


def test_converting_loads_no_heavy_library(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", PAIRS)
    code = (
        "import sys; from penchant.cli.main import main\n"
        f"main(['data', 'convert', {str(source)!r}, '--to', 'labels', "
        f"'--output', {str(tmp_path / 'o.jsonl')!r}])\n"
        "print(sorted({'datasets', 'pyarrow', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
