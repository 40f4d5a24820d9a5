"""Cleaning drops what was asked for, says what went, and never touches its input."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penchant.cli.main import main
from penchant.core.errors import ConfigError
from penchant.data import clean
from penchant.data.records import DataError

Row = dict[str, Any]


@pytest.fixture
def faulty(tmp_path: Path, make_pairs: Callable[..., list[Row]]) -> Path:
    """Return a file of 12 pairs with further columns, a repeat, a contradiction and a bad line."""
    rows = [{**row, "source": f"s{number}"} for number, row in enumerate(make_pairs(12))]
    swapped = {**rows[2], "chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}
    lines = [json.dumps(row) for row in [*rows, rows[0], swapped]]
    path = tmp_path / "faulty.jsonl"
    path.write_text("\n".join([*lines[:5], "{not json", *lines[5:]]) + "\n")
    return path


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_go_by_name_and_the_rest_keep_their_columns(faulty: Path, tmp_path: Path) -> None:
    before = faulty.read_bytes()
    done = clean(faulty, drop=["duplicates", "contradictions", "ties"], output=tmp_path / "c.jsonl")
    assert faulty.read_bytes() == before
    assert [row["source"] for row in read(done.output)] == [
        "s0",
        "s1",
        *(f"s{n}" for n in range(3, 12)),
    ]
    assert done.dropped == {"duplicates": 1, "contradictions": 2, "ties": 0, "unreadable": 1}
    assert (done.kept, done.removed) == (11, 4)
    removed = read(done.removals)
    assert done.removals.name == "c.removed.jsonl"
    assert [(one["where"], one["drop"]) for one in removed] == [
        ("faulty.jsonl:3", ["contradictions"]),
        ("faulty.jsonl:6", ["unreadable"]),
        ("faulty.jsonl:14", ["duplicates"]),
        ("faulty.jsonl:15", ["contradictions"]),
    ]
    assert removed[0]["row"]["source"] == "s2"


def test_refused_rows_go_together_or_by_one_reason(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "x", "rejected": "y"}
    rows = [good, {**good, "chosen": ""}, {**good, "chosen": "y"}]
    for name, where in (("refused-rows", ["list:2", "list:3"]), ("empty-completion", ["list:2"])):
        done = clean(rows, drop=[name], output=tmp_path / f"{name}.jsonl")
        assert [one["where"] for one in read(done.removals)] == where
        assert done.dropped[name] == len(where)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_the_same_input_and_options_give_the_same_bytes(
    faulty: Path, tmp_path: Path, suffix: str
) -> None:
    outputs = [
        clean(faulty, drop=["duplicates"], output=tmp_path / f"{name}.{suffix}").output
        for name in ("one", "two")
    ]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_an_unknown_remedy_is_refused_with_the_known_ones(faulty: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no remedy is called 'dupes'.*duplicates, contradictions"
    ):
        clean(faulty, drop=["dupes"], output=tmp_path / "c.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faulty.jsonl"]


def test_an_output_that_exists_is_not_overwritten(faulty: Path) -> None:
    with pytest.raises(DataError, match="exists and is not overwritten"):
        clean(faulty, drop=["duplicates"], output=faulty)


def test_nothing_is_written_when_nothing_would_remain(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y"},
            {"prompt": "p", "chosen": "y", "rejected": "x"}]  # fmt: skip
    with pytest.raises(DataError, match="nothing of the list would remain"):
        clean(rows, drop=["contradictions"], output=tmp_path / "c.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_remedy_of_a_sample_asks_for_a_larger_one(
    tmp_path: Path, make_pairs: Callable[..., list[Row]]
) -> None:
    rows = make_pairs(400)
    for row in rows:
        row["chosen"] += " Good good good."
    for row in rows[:40]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    with pytest.raises(ConfigError, match="set --sample"):
        clean(rows, drop=["label-noise"], output=tmp_path / "c.jsonl", sample=300)
    done = clean(rows, drop=["label-noise"], output=tmp_path / "c.jsonl")
    assert done.dropped["label-noise"] == 40 and done.kept == 360


def test_the_command_line_says_what_went(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.jsonl"
    words = ["data", "clean", str(faulty), "--drop", "duplicates,contradictions"]
    assert main([*words, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "kept 11 of 15 rows" in said and "duplicates: 1 row" in said
    assert main([*words, "--output", str(output)]) == 1


def test_a_file_cut_off_in_the_middle_keeps_the_rows_before(
    tmp_path: Path, make_pairs: Callable[..., list[Row]]
) -> None:
    path = tmp_path / "cut.jsonl.gz"
    lines = "".join(json.dumps(row) + "\n" for row in make_pairs(300))
    whole = gzip.compress(lines.encode())
    path.write_bytes(whole[: len(whole) // 2])
    done = clean(path, drop=["compressed-file-cut-off"], output=tmp_path / "c.jsonl")
    assert 50 < done.kept < 250 and done.removed == 1
    assert "cut off" in read(done.removals)[0]["detail"]
