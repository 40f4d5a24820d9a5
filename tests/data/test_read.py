"""Every source gives the same pairs, and everything left out is counted with its place."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from penchant.data.opening import MissingDataError
from penchant.data.read import read_pairs
from penchant.data.records import DataError, Pair

ROWS = [
    {"prompt": f"question {n}", "chosen": f"good, {n}\nreally", "rejected": f"bad “{n}”"}
    for n in range(1, 4)
]
CHAT_ROWS = [
    {
        "prompt": [{"role": "user", "content": f"question {n}"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    for n in range(1, 4)
]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_rows(path, rows):
    """Write rows in the format that the name of `path` says."""
    import pyarrow
    import pyarrow.parquet

    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return write(path, sink.getvalue().to_pybytes())
    if suffix == ".csv":
        plain = path.parent / "plain.csv"
        with plain.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            for row in rows:
                cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                writer.writerow(cells)
        return write(path, plain.read_bytes())
    return write(path, jsonl(rows) if suffix == ".jsonl" else json.dumps(rows).encode())


FILES = ["p.jsonl", "p.json", "p.csv", "p.parquet"]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rows", [ROWS, CHAT_ROWS], ids=["text", "chat"])
def test_every_file_format_gives_the_same_pairs(tmp_path, name, gz, rows):
    path = write_rows(tmp_path / (name + gz), rows)
    data, listed = read_pairs(path), read_pairs(rows)
    assert data.fingerprint == listed.fingerprint
    assert len(data.records) == 3
    assert not data.refused
    assert data.layout == listed.layout
    assert data.source == str(path)
    assert read_pairs(str(path)).records == data.records


def test_pair_says_the_line_or_row_it_came_from(tmp_path):
    blank_first = write(tmp_path / "p.jsonl", b"\n" + jsonl(ROWS))
    assert read_pairs(blank_first).records[0].where == "p.jsonl:2"
    # Each row of the table spans two lines, and the heading is the first.
    table = write_rows(tmp_path / "p.csv", ROWS)
    assert [pair.where for pair in read_pairs(table).records] == ["p.csv:2", "p.csv:4", "p.csv:6"]
    assert [pair.where for pair in read_pairs(ROWS).records] == ["list:1", "list:2", "list:3"]


def test_byte_order_mark_does_not_cost_the_first_row(tmp_path):
    for name in ("p.jsonl", "p.json", "p.csv"):
        path = write_rows(tmp_path / name, ROWS)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(read_pairs(path, strict=True).records) == 3


def test_dataset_saved_dataset_and_split_give_the_same_pairs(tmp_path):
    datasets = pytest.importorskip("datasets")
    expected = read_pairs(ROWS).fingerprint
    dataset = datasets.Dataset.from_list([{**row, "extra": 1} for row in ROWS])
    assert read_pairs(dataset).fingerprint == expected

    dataset.save_to_disk(str(tmp_path / "one"))
    saved = read_pairs(tmp_path / "one")
    assert saved.fingerprint == expected
    assert saved.records[2].where == "one:3"

    both = datasets.DatasetDict(train=dataset.select([0]), test=dataset)
    both.save_to_disk(str(tmp_path / "both"))
    assert read_pairs(tmp_path / "both", split="test").fingerprint == expected
    assert len(read_pairs(both).records) == 1
    with pytest.raises(DataError, match=r"no split 'dev'; it has: train, test"):
        read_pairs(tmp_path / "both", split="dev")


def test_chat_dataset_with_formatting_still_reads_as_messages():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(CHAT_ROWS).with_format("numpy")
    assert read_pairs(dataset).fingerprint == read_pairs(CHAT_ROWS).fingerprint


def test_hub_id_is_loaded_with_its_split(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, *, split):
        asked.append((name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = read_pairs("owner/feedback_v1.0", split="test")
    assert asked == [("owner/feedback_v1.0", "test")]
    assert (data.source, data.records[0].where) == ("owner/feedback_v1.0", "owner/feedback_v1.0:1")


def test_one_of_a_hub_ids_configurations_is_named_after_it(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")

    def load_dataset(name, configuration=None, *, split):
        if configuration != "beta":  # as the library says it
            raise ValueError(
                "Config name is missing.\nPlease pick one among the available configs: "
                "['alpha', 'beta']\nExample of usage:\n\t`load_dataset('owner/name', 'alpha')`"
            )
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"several configurations: alpha, beta; .*owner/name:alpha"):
        read_pairs("owner/name")
    assert len(read_pairs("owner/name:beta").records) == len(ROWS)


def test_unserved_hub_id_says_that_the_file_is_missing_too(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")

    def load_dataset(name, *, split):
        raise ConnectionError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"(?s)no such file: owner/name.*hub.*no route to host"):
        read_pairs("owner/name")


@pytest.mark.parametrize("given", [str, Path])
def test_missing_file_names_the_nearest_one_and_never_asks_the_hub(monkeypatch, tmp_path, given):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "pairs.jsonl", ROWS)
    for name in ("data/pair.jsonl", "../nothing"):
        with pytest.raises(MissingDataError, match="no such file"):
            read_pairs(given(name))
    with pytest.raises(FileNotFoundError, match=r"did you mean data/pairs\.jsonl\?"):
        read_pairs(given("data/pair.jsonl"))


def test_what_neither_content_nor_name_tells_lists_the_known_names(tmp_path):
    with pytest.raises(DataError, match=r"\.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet"):
        read_pairs(write(tmp_path / "pairs.doc", b"x"))


@pytest.mark.parametrize("content", [b"", b"\n\n"], ids=["no bytes", "blank lines"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.jsonl.gz", "p.json.gz"])
def test_empty_file_is_an_error(tmp_path, name, content):
    with pytest.raises(DataError, match=r"is empty|holds no rows"):
        read_pairs(write(tmp_path / name, content))


def test_empty_parquet_list_and_heading_alone_are_errors(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        read_pairs(write(tmp_path / "p.parquet", b""))
    for source in ([], write(tmp_path / "p.csv", b"prompt,chosen,rejected\n")):
        with pytest.raises(DataError, match="holds no rows"):
            read_pairs(source)


def test_malformed_json_line_is_refused_with_its_position(tmp_path):
    path = write(tmp_path / "p.jsonl", jsonl(ROWS[:1]) + b'{"prompt": oops}\n' + jsonl(ROWS[1:]))
    data = read_pairs(path)
    assert len(data.records) == 2 + 1
    [refusal] = data.refused
    assert (refusal.where, refusal.reason) == ("p.jsonl:2", "malformed JSON")
    assert "column 12" in refusal.detail


def test_jsonl_whose_last_line_was_cut_keeps_the_rows_before(tmp_path):
    data = read_pairs(write(tmp_path / "p.jsonl", jsonl(ROWS)[:-20]))
    assert len(data.records) == 2
    assert data.refused[0].where == "p.jsonl:3"


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"prompt": ' + b"9" * 10_000 + b"}"])
def test_hostile_json_line_is_refused_like_any_other(tmp_path, line):
    data = read_pairs(write(tmp_path / "p.jsonl", jsonl(ROWS) + line + b"\n"))
    assert len(data.records) == 3
    assert len(data.refused) == 1


def test_line_separator_within_a_string_does_not_end_the_line(tmp_path):
    row = json.dumps({**ROWS[0], "chosen": "one\u2028two"}, ensure_ascii=False) + "\r\n"
    assert read_pairs(write(tmp_path / "p.jsonl", row.encode())).records[0].chosen == "one\u2028two"


def test_invalid_utf8_refuses_only_its_row(tmp_path):
    bad = jsonl([{**ROWS[0], "chosen": "XX"}]).replace(b"XX", b"caf\xe9")
    data = read_pairs(write(tmp_path / "p.jsonl", bad + jsonl(ROWS)))
    assert (len(data.records), data.refused[0].reason) == (3, "invalid UTF-8")
    assert "0xe9" in data.refused[0].detail

    table = b"prompt,chosen,rejected\nq,caf\xe9,bad\nq,good,bad\n"
    data = read_pairs(write(tmp_path / "p.csv", table))
    assert (len(data.records), data.refused[0].reason) == (1, "invalid UTF-8")
    assert "iconv -f LATIN1 -t UTF-8" in data.refused[0].detail


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.csv.gz"])
def test_gzip_cut_off_keeps_the_rows_before_the_cut_and_counts_it(tmp_path, name):
    noise = random.Random(0)
    rows = [{**ROWS[0], "chosen": noise.randbytes(200).hex()} for _ in range(200)]
    path = write_rows(tmp_path / name, rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = read_pairs(path)
    assert 50 < len(data.records) < 150
    assert [pair.chosen for pair in data.records] == [
        r["chosen"] for r in rows[: len(data.records)]
    ]
    [refusal] = data.refused
    assert refusal.reason == "compressed file cut off"
    with pytest.raises(DataError, match="compressed file cut off"):
        read_pairs(path, strict=True)


@pytest.mark.parametrize("name", ["p.json.gz", "p.parquet.gz"])
def test_gzip_cut_off_in_a_format_read_whole_is_an_error(tmp_path, name):
    path = write_rows(tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cut off"):
        read_pairs(path)


def test_file_that_is_not_gzip_despite_its_name_is_an_error(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(jsonl(ROWS))
    with pytest.raises(DataError, match="not a valid gzip file"):
        read_pairs(path)


def test_malformed_json_file_is_an_error_with_line_and_column(tmp_path):
    with pytest.raises(DataError, match="line 2, column 4"):
        read_pairs(write(tmp_path / "p.json", b"[{},\n{},}]"))


SIMPLE = [{"prompt": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
TABLE = "prompt,chosen,rejected\n" + "".join(
    f"{row['prompt']},{row['chosen']},{row['rejected']}\n" for row in SIMPLE
)
LISTED = json.dumps(SIMPLE)
MISNAMED = {
    "lines named json": ("p.json", jsonl(SIMPLE)),
    "a list named jsonl": ("p.jsonl", LISTED.encode()),
    "a list over lines named jsonl": ("p.jsonl", json.dumps(SIMPLE, indent=2).encode()),
    "ndjson": ("p.ndjson", jsonl(SIMPLE)),
    "no suffix": ("pairs", jsonl(SIMPLE)),
    "lines named txt": ("p.txt", jsonl(SIMPLE)),
    "gzip without its suffix": ("p.jsonl", gzip.compress(jsonl(SIMPLE))),
    "a byte order mark": ("p.json", b"\xef\xbb\xbf" + LISTED.encode()),
    "tabs": ("p.tsv", TABLE.replace(",", "\t").encode()),
    "semicolons": ("p.csv", TABLE.replace(",", ";").encode()),
    "a list within an object": ("p.json", json.dumps({"examples": SIMPLE}).encode()),
    "by key": ("p.json", json.dumps({f"id{n}": row for n, row in enumerate(SIMPLE)}).encode()),
    "JSON within JSON": (
        "p.jsonl",
        "".join(json.dumps(json.dumps(row)) + "\n" for row in SIMPLE).encode(),
    ),
    "by column": ("p.json", json.dumps({k: [r[k] for r in SIMPLE] for k in SIMPLE[0]}).encode()),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_format_is_told_by_content_whatever_the_name_says(tmp_path, name):
    file, content = MISNAMED[name]
    data = read_pairs(write(tmp_path / file, content))
    assert data.fingerprint == read_pairs(SIMPLE).fingerprint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.json"])
def test_utf16_is_refused_with_the_command_that_helps(tmp_path, encoding, name):
    with pytest.raises(DataError, match="iconv -f UTF-16 -t UTF-8 "):
        read_pairs(write(tmp_path / name, TABLE.encode(encoding)))


def test_pointer_of_git_lfs_is_not_taken_for_data(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    with pytest.raises(DataError, match="git lfs pull"):
        read_pairs(write(tmp_path / "p.jsonl", pointer))


@pytest.mark.parametrize("key", ["data", "train"])
def test_json_object_with_one_list_is_read(tmp_path, key):
    content = json.dumps({"version": 1, key: ROWS}).encode()
    assert len(read_pairs(write(tmp_path / "p.json", content)).records) == 3


def test_json_of_another_shape_is_an_error(tmp_path):
    with pytest.raises(DataError, match="must hold a list of objects"):
        read_pairs(write(tmp_path / "p.json", b"3"))


@pytest.mark.parametrize(("split", "num"), [("train", 1), ("data", 2), ("more", 3)])
def test_split_names_one_of_several_lists_in_a_json_object(tmp_path, split, num):
    lists = {"train": ROWS[:1], "data": ROWS[:2], "more": ROWS}
    path = write(tmp_path / "p.json", json.dumps(lists).encode())
    assert len(read_pairs(path, split=split).records) == num


def test_csv_cell_beyond_the_modules_limit_is_read_and_the_limit_restored(tmp_path):
    limit = csv.field_size_limit()
    path = write_rows(tmp_path / "p.csv", [{**ROWS[0], "chosen": "x" * 300_000}])
    assert len(read_pairs(path).records[0].chosen) == 300_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("q,good,bad,extra", "too many cells"),
        ("q,good", "missing field"),
        ("q,,bad", "empty completion"),
        ("\"[{'role': 'user', 'content': q}]\",good,bad", "malformed JSON"),
    ],
)
def test_bad_csv_row_is_refused(tmp_path, cells, reason):
    content = f"prompt,chosen,rejected\nq,good,bad\n{cells}\n".encode()
    data = read_pairs(write(tmp_path / "p.csv", content))
    assert len(data.records) == 1
    assert [(one.where, one.reason) for one in data.refused] == [("p.csv:3", reason)]


def test_two_fields_of_one_name_are_refused_rather_than_one_lost(tmp_path):
    (tmp_path / "twice.csv").write_text("prompt,chosen,rejected,chosen\nq,a,b,c\n")
    with pytest.raises(DataError, match="two columns named 'chosen'"):
        read_pairs(tmp_path / "twice.csv")
    line = '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}'
    (tmp_path / "twice.jsonl").write_text(line)
    (tmp_path / "twice.json").write_text(f"[{line}]")
    for name in ("twice.jsonl", "twice.json"):
        with pytest.raises(DataError, match="two fields named 'chosen'"):
            read_pairs(tmp_path / name)


def test_csv_text_that_begins_with_a_bracket_stays_text(tmp_path):
    path = write_rows(tmp_path / "p.csv", [{**ROWS[0], "chosen": "[1, 2]", "rejected": "[{}]"}])
    assert read_pairs(path).records[0].chosen == "[1, 2]"


def test_csv_with_an_open_quote_is_an_error_not_one_long_cell(tmp_path):
    content = b'prompt,chosen,rejected\nq,good,bad\nq,"good,bad\nq,good,bad\n'
    with pytest.raises(DataError, match=r"in the row at line 3"):
        read_pairs(write(tmp_path / "p.csv", content))


def test_file_that_is_not_parquet_is_an_error(tmp_path):
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_pairs(write(tmp_path / "p.parquet", b"PAR1 and no more"))


def test_first_row_that_fits_decides_the_layout():
    label = {"prompt": "q", "completion_a": "x", "completion_b": "y", "label": "a"}
    data = read_pairs([{"question": "?"}, ROWS[0], label, CHAT_ROWS[0], ROWS[1]])
    assert [pair.where for pair in data.records] == ["list:2", "list:5"]
    assert [one.reason for one in data.refused] == [
        "missing field",
        "mixed formats",
        "mixed formats",
    ]
    assert data.layout == "prompt, chosen, rejected (text)"


def test_row_without_a_field_is_refused_by_row_and_field():
    data = read_pairs([ROWS[0], {"prompt": "q", "chosen": "x"}])
    assert str(data.refused[0]).startswith("list:2: missing field: 'rejected' is absent")


def test_no_usable_row_is_an_error_with_counts_examples_and_layouts():
    with pytest.raises(DataError) as caught:
        read_pairs([{"remark": "?", "note": "!"}] * 5)
    message = str(caught.value)
    assert "5 refused" in message
    assert "list:3" in message
    assert "list:4" not in message
    assert "chosen, rejected (chat)" in message


def test_only_ties_is_an_error():
    row = {"prompt": "q", "completion_a": "x", "completion_b": "y", "label": "tie"}
    with pytest.raises(DataError, match="only 2 ties"):
        read_pairs([row, row])


def test_strict_names_the_first_refusals():
    rows = [ROWS[0], *[{**ROWS[0], "chosen": ""}] * 5]
    assert len(read_pairs(rows).refused) == 5
    with pytest.raises(
        DataError, match=r"(?s)5 refused rows.*list:2: empty completion.*list:4"
    ) as caught:
        read_pairs(rows, strict=True)
    assert "list:5" not in str(caught.value)


def test_summary_accounts_for_every_row():
    label = {"prompt": "q", "completion_a": "x", "completion_b": "y"}
    rows = [{**label, "label": value} for value in ("a", "b", "tie", "c", "d", "e", "f")]
    summary = read_pairs([*rows, {**label, "label": "a", "completion_a": ""}]).summary()
    assert "read 2 pairs from the list" in summary
    assert "1 tie left out; 5 rows refused" in summary
    assert "4 refused: unknown label" in summary
    assert "list:6" in summary
    assert "list:7" not in summary
    assert "1 refused: empty completion" in summary


@pytest.mark.parametrize("source", [None, 3, {"prompt": ["q"]}, iter(ROWS)])
def test_source_of_another_type_is_named(source):
    with pytest.raises(TypeError, match=f"got {type(source).__name__}"):
        read_pairs(source)


def test_importing_and_reading_jsonl_loads_no_heavy_library(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", ROWS)
    code = (
        "import sys; from penchant.data.read import read_pairs\n"
        f"assert len(read_pairs({str(path)!r}).records) == 3\n"
        "print(sorted({'datasets', 'pyarrow', 'torch', 'numpy'} & set(sys.modules)))"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_pandalm_gives_its_842_pairs_and_103_ties(shared):
    data = read_pairs(shared / "data" / "pandalm.jsonl", strict=True)
    assert (len(data.records), data.ties) == (842, 103)
    first = data.records[0]
    assert isinstance(first, Pair)
    assert first.chosen.endswith("please let me know.")


def test_hh_harmless_reads_but_for_empty_answers(shared):
    data = read_pairs(shared / "data" / "hh-harmless.jsonl.gz")
    assert len(data.records) == 2308
    # Chats that part before their last answer.
    assert sum(len(pair.chosen) > 1 or len(pair.rejected) > 1 for pair in data.records) == 5
    reasons = Counter(one.reason for one in data.refused)
    assert reasons == {"empty completion": 4}
    assert all(pair.prompt[-1]["role"] == "user" for pair in data.records)
