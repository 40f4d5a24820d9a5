"""Several files, folders, patterns and datasets are read as one source, each row with its place."""

from __future__ import annotations

import bz2
import json
import lzma

import pytest

from penchant.audit import inspect
from penchant.data.building import build
from penchant.data.converting.convert import convert
from penchant.data.json_cells import LONGEST_LITERAL
from penchant.data.opening import MissingDataError, Sources
from penchant.data.read import OtherKindError, read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import DataError
from penchant.data.split_file import split_file


def rows(name, number=2):
    return [
        {"prompt": f"{name} {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"}
        for n in range(number)
    ]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def places(source, **how):
    return [pair.where for pair in read_pairs(source, **how).records]


def test_several_files_are_read_in_the_order_given_and_counted_by_file(tmp_path):
    b, a = write(tmp_path / "b.jsonl", rows("b", 3)), write(tmp_path / "a.jsonl", rows("a", 1))
    data = read_pairs([b, str(a)])
    assert [pair.where for pair in data.records] == [
        "b.jsonl:1", "b.jsonl:2", "b.jsonl:3", "a.jsonl:1",
    ]  # fmt: skip
    assert "read 4 pairs" in data.summary()
    assert "by file: b.jsonl 3, a.jsonl 1" in data.summary()


def test_files_of_one_name_are_told_apart(tmp_path):
    files = [write(tmp_path / name / "p.jsonl", rows(name, 1)) for name in ("one", "two")]
    assert places(files) == [f"{file}:1" for file in files]


def test_files_may_differ_in_layout_but_not_in_kind(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", rows("p", 1))
    voted = {"prompt": "q?", "completion_a": "x", "completion_b": "y", "label": "b"}
    other = write(tmp_path / "voted.jsonl", [voted])
    data = read_pairs([pairs, other])
    assert (data.records[1].chosen, len(data.layouts)) == ("y", 2)
    judged = write(tmp_path / "labels.jsonl", [{"prompt": "q", "completion": "c", "label": True}])
    with pytest.raises(OtherKindError, match=r"labels\.jsonl holds labels"):
        read_pairs([pairs, judged])


def test_a_file_of_which_nothing_is_read_is_an_error_beside_one_that_is(tmp_path):
    good = write(tmp_path / "good.jsonl", rows("g"))
    with pytest.raises(DataError, match=r"no row of useless\.jsonl is a preference pair"):
        read_pairs([good, write(tmp_path / "useless.jsonl", [{"text": "nothing"}])])


def test_a_pattern_is_read_by_name_and_one_without_a_match_is_an_error(tmp_path):
    for name in ("2", "1"):
        write(tmp_path / f"part-{name}.jsonl", rows(name, 1))
    assert places(str(tmp_path / "part-*.jsonl")) == ["part-1.jsonl:1", "part-2.jsonl:1"]
    with pytest.raises(MissingDataError, match="no file matches"):
        read_pairs(str(tmp_path / "shard-*.jsonl"))


def test_a_folder_of_shards_is_read_by_name(tmp_path):
    for name in ("2", "1"):
        write(tmp_path / "data" / f"part-{name}.jsonl", rows(name, 1))
    (tmp_path / "README.md").write_text("# no data")
    write(tmp_path / ".cache" / "p.jsonl", rows("hidden"))
    assert places(tmp_path) == ["data/part-1.jsonl:1", "data/part-2.jsonl:1"]


def test_a_folder_with_several_splits_gives_the_one_that_is_asked_for(tmp_path):
    for split in ("train_prefs", "test_prefs"):
        write(tmp_path / "data" / f"{split}-00000-of-00001.jsonl", rows(split, 1))
    with pytest.raises(
        DataError, match=r"it has: test_prefs, train_prefs; name .*--split test_prefs"
    ):
        read_pairs(tmp_path)
    assert places(tmp_path, split="test_prefs") == ["data/test_prefs-00000-of-00001.jsonl:1"]
    write(tmp_path / "more.jsonl", rows("more"))
    with pytest.raises(DataError, match=r"names say no split: more\.jsonl"):
        read_pairs(tmp_path, split="test_prefs")


def test_plain_names_of_splits_are_understood(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.jsonl", rows(name, 1))
    assert places(tmp_path) == ["train.jsonl:1"]
    assert places(tmp_path, split="validation") == ["dev.jsonl:1"]


README = """---
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/*.jsonl
{more}---
# data
"""
DEFAULT = """- config_name: default
  data_files:
  - split: train
    path: ["first/*.jsonl", "second/*.jsonl"]
"""


def test_readme_of_a_download_says_what_belongs_to_a_split(tmp_path):
    for name in ("plain", "second", "first"):
        write(tmp_path / name / "p.jsonl", rows(name, 1))
    (tmp_path / "README.md").write_text(README.format(more=DEFAULT))
    assert places(tmp_path) == ["first/p.jsonl:1", "second/p.jsonl:1"]
    (tmp_path / "README.md").write_text(README.format(more=DEFAULT.replace("default", "other")))
    with pytest.raises(DataError, match=r"(?s)several configurations.*other: first/\*\.jsonl"):
        read_pairs(tmp_path)
    (tmp_path / "README.md").write_text(README.format(more="").replace("plain/", "missing/"))
    with pytest.raises(DataError, match=r"missing/\*\.jsonl.*no such file"):
        read_pairs(tmp_path)


def test_columns_are_named_in_every_file_and_a_name_that_nothing_has_is_an_error(tmp_path):
    own = [{"Q": "q?", "chosen": "x", "rejected": "y"}]
    files = [write(tmp_path / "own.jsonl", own), write(tmp_path / "plain.jsonl", rows("p", 1))]
    assert len(read_pairs(files, columns={"prompt": "Q"}).records) == 2
    with pytest.raises(DataError, match=r"columns names W.*it has: Q, chosen, rejected"):
        read_pairs(files[0], columns={"prompt": "W"})


def test_columns_may_change_places(tmp_path):
    swapped = read_pairs(rows("p", 1), columns={"chosen": "rejected", "rejected": "chosen"})
    assert (swapped.records[0].chosen, swapped.records[0].rejected) == ("bad 0", "good 0")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "list"])
def test_messages_kept_as_text_are_messages_in_every_kind_of_file(tmp_path, suffix):
    chat = {
        "prompt": [{"role": "user", "content": "q?"}],
        "chosen": [{"role": "assistant", "content": "x"}],
        "rejected": [{"role": "assistant", "content": "y"}],
    }
    kept = {name: json.dumps(messages) for name, messages in chat.items()}
    path = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([kept]), path)
    elif suffix == "csv":
        pytest.importorskip("pandas").DataFrame([kept]).to_csv(path, index=False)
    elif suffix == "jsonl":
        write(path, [kept])
    data = read_pairs([kept] if suffix == "list" else path)
    assert data.fingerprint == read_pairs([chat]).fingerprint


@pytest.mark.parametrize("text", ['{"value": 3}', "[1, 2]", '{"role": "user"}', "[{}]"])
def test_an_answer_that_is_json_but_no_message_stays_text(text):
    row = {"prompt": "as JSON", "chosen": text, "rejected": "no"}
    assert read_pairs([row]).records[0].chosen == text


def test_parquet_lists_its_own_columns_in_an_error(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "p.parquet"
    table = pyarrow.Table.from_pylist([{"gut": "x", "schlecht": "y"}])
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    with pytest.raises(DataError, match="the row has: gut, schlecht"):
        read_pairs(path)


def test_every_command_on_data_takes_several_files_and_columns(tmp_path):
    own = [{**row, "Q": row["prompt"]} for row in rows("a", 30)]
    own = [{name: value for name, value in row.items() if name != "prompt"} for row in own]
    files = [write(tmp_path / f"{n}.jsonl", own[15 * n : 15 * n + 15]) for n in range(2)]
    how = {"columns": {"prompt": "Q"}}
    assert "30 pairs" in convert(files, "labels", tmp_path / "l.jsonl", **how).summary()
    parts = split_file(files, tmp_path / "parts", **how).parts
    assert sum(part.rows for part in parts) == 30
    report = inspect(files, **how)
    assert len(report.places) == 30
    assert list(report.places.at([14, 15])) == ["0.jsonl:15", "1.jsonl:1"]
    judged = [{"Q": "q?", "completion": c, "label": n} for n, c in enumerate("xy")]
    judged = [write(tmp_path / f"j{n}.jsonl", [row]) for n, row in enumerate(judged)]
    assert build(judged, **how).written == 2
    assert len(read_labels(judged, **how).records) == 2


def test_a_source_is_written_as_a_command_line_takes_it():
    sources = Sources(["a b.jsonl", "c.jsonl"], "test", {"prompt": "my question"})
    assert sources.argument == ("'a b.jsonl' c.jsonl --split test --columns 'prompt=my question'")


OTHER_FORMS = {
    "excel.csv": b"sep=;\r\nprompt;chosen;rejected\r\np 0;good 0;bad 0\r\n",
    "bars.csv": b" prompt| chosen|rejected \np 0|good 0|bad 0\n",
    "objects.json": b'{"prompt": "p 0",\n "chosen": "good 0",\n "rejected": "bad 0"}\n'
    b'{"prompt": "p 1",\n "chosen": "good 1",\n "rejected": "bad 1"}',
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_text_of_other_tools_is_read_as_what_it_is(tmp_path, name):
    (tmp_path / name).write_bytes(OTHER_FORMS[name])
    first = read_pairs(tmp_path / name).records[0]
    assert (first.prompt, first.chosen, first.rejected) == ("p 0", "good 0", "bad 0")


@pytest.mark.parametrize("form", ["bz2", "xz", "zst", "arrow", "feather", "stream.arrow"])
def test_packed_and_arrow_files_hold_the_same_pairs(tmp_path, form):
    content = rows("p", 3)
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    path = tmp_path / f"p.jsonl.{form}"
    if form in ("bz2", "xz"):
        path.write_bytes({"bz2": bz2, "xz": lzma}[form].compress(lines))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.Table.from_pylist(content)
        if form == "zst":
            with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
                stream.write(lines)
        elif form == "feather":
            pytest.importorskip("pyarrow.feather").write_feather(table, path)
        else:
            new = pyarrow.ipc.new_stream if "stream" in form else pyarrow.ipc.new_file
            with new(path, table.schema) as writer:
                writer.write_table(table)
    assert read_pairs(path).fingerprint == read_pairs(content).fingerprint


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"SQLite format 3\0", r"sqlite3 -json .*p\.db"),
        (b"PK\x03\x04", r"unzip .*p\.db"),
        (b"\x80\x04", "a pickle, which may run any code"),
    ],
)
def test_files_that_hold_rows_otherwise_are_refused_with_what_makes_readable_ones(
    tmp_path, head, told
):
    path = tmp_path / "p.db"
    path.write_bytes(head + b"\0" * 40)
    with pytest.raises(DataError, match=told):
        read_pairs(path)


def test_messages_as_pandas_writes_them_are_messages_and_no_code_is_run(tmp_path):
    chat = {
        "prompt": [{"role": "user", "content": "it's?"}],
        "chosen": [{"role": "assistant", "content": "x"}],
        "rejected": [{"role": "assistant", "content": "y"}],
    }
    kept = {name: repr(messages) for name, messages in chat.items()}
    assert read_pairs([kept]).fingerprint == read_pairs([chat]).fingerprint
    ran = tmp_path / "ran"
    code = f"[{{'role': 'assistant', 'content': open({str(ran)!r}, 'w').name}}]"
    with pytest.raises(DataError, match="not as JSON"):
        read_pairs([{**kept, "chosen": code}])
    assert not ran.exists()
    long = repr([{"role": "assistant", "content": "x" * LONGEST_LITERAL}])
    with pytest.raises(DataError, match="not as JSON"):
        read_pairs([{**kept, "chosen": long}])


def test_json_that_was_asked_or_answered_stays_a_text():
    """An answer in JSON is trained on as it stands; only with both columns it is a log of calls."""
    asked, said = '{"query": "abc"}', ['{"answer": "4"}', '{"answer": "5"}']
    compared = {"input": asked, "output_1": said[0], "output_2": said[1], "label": 1}
    (pair,) = build([compared]).rows
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (asked, *said)
    rows = [{"prompt": "2 + 2, as JSON", "output": said[0], "label": True}]
    with pytest.raises(DataError, match="--columns completion=output"):
        read_labels(rows)
    logged = [
        {"inputs": json.dumps({"prompt": "2 + 2"}), "outputs": text, "label": text == said[0]}
        for text in said
    ]
    opened = read_labels(logged, columns={"completion": "answer"}).records
    assert [(one.prompt, one.completion) for one in opened] == [("2 + 2", "4"), ("2 + 2", "5")]
