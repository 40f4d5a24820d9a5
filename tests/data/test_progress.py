"""Long work on a file says how far it is, on a terminal only."""

from __future__ import annotations

import gzip
import io
import json

import pytest
from rich.console import Console

from penchant.core import screen
from penchant.data.building import build
from penchant.data.converting.convert import convert
from penchant.data.files import open_file
from penchant.data.split_file import split_file

ROWS = [
    {"prompt": f"question {n}", "completion_a": f"yes {n}", "completion_b": f"no {n}", "label": "a"}
    for n in range(40)
]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / ("a folder with a name as long as a terminal is wide " * 2).strip()
    folder.mkdir()
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def screen_text(monkeypatch):
    """What a terminal shows."""
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=120)
    monkeypatch.setattr(screen, "console", terminal)
    return stream.getvalue


WORK = {
    "build": lambda source, folder: build(source, folder / "pairs.jsonl"),
    "build from groups": lambda source, folder: build(
        source, folder / "pairs.jsonl", form="votes", votes=["label"]
    ),
    "convert": lambda source, folder: convert(source, "labels", folder / "labels-of-pairs.jsonl"),
    "split": lambda source, folder: split_file(source, folder / "parts"),
}


@pytest.mark.parametrize("name", WORK)
def test_a_terminal_shows_how_much_of_the_file_is_read(source, tmp_path, screen_text, name):
    WORK[name](source, tmp_path)
    size = source.stat().st_size
    assert f"reading {source.name}" in screen_text()
    assert f"/{size / 1000:.1f} kB" in screen_text()


@pytest.mark.parametrize("name", WORK)
def test_elsewhere_nothing_is_shown(source, tmp_path, capfd, name):
    WORK[name](source, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_every_format_knows_how_far_it_is_read(tmp_path, name):
    path = tmp_path / name
    texts = [f"question {n}" for n in range(100)]
    if name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"prompt": texts}), path)
    elif name == "a.json":
        path.write_text(json.dumps([{"prompt": text} for text in texts]))
    elif "jsonl" in name:
        content = "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    else:
        path.write_text("\n".join(["prompt", *texts]))
    read: list[int] = []
    rows = list(open_file(path, watch=read.append))
    assert len(rows) >= 100
    assert read == sorted(read)
    assert read[-1] == path.stat().st_size
