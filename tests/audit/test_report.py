"""The report reaches people and programs whole, whatever the records hold and however large."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.audit.scan import scan
from penchant.cli.main import main
from penchant.data import inspect
from penchant.data.opening import Sources

Row = dict[str, Any]
HOSTILE = "<script>alert(1)</script><img src=http://x.example/y onerror=alert(2)>\x1b[2J"


def test_json_names_every_row_found(
    tmp_path: Path, make_pairs: Callable[..., list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_pairs(20)
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows]))
    assert main(["data", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["rows"] == 40
    finding = next(one for one in found["findings"] if one["id"] == "duplicates")
    assert finding["rows"] == [f"p.jsonl:{line}" for line in range(21, 41)]
    assert finding["severity"] == "warning" and finding["evidence"]["groups"] == 20


def test_text_of_records_is_escaped_on_the_page_and_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "<b>.jsonl", tmp_path / "report.html"
    row = {"prompt": HOSTILE, "chosen": HOSTILE + "[red]a", "rejected": "b", "label": HOSTILE}
    rows = [row, row, {**row, "rejected": ""}, {"prompt": "p", "chosen": HOSTILE}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "inspect", str(path), "--html", str(page)]) == 0
    html = page.read_text()
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
    assert "<b>.jsonl" not in html
    assert "default-src 'none'" in html and html.count("<svg") >= 2
    # Nothing is fetched: addresses are only names of XML.
    assert set(re.findall(r'(?:src|href)="(http[^"]*)"', html)) == set()
    assert "\x1b[2J" not in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    beyond = tmp_path / "file" / "r.html"
    for page, said in ((tmp_path, f"{tmp_path} is a folder"), (beyond, f"cannot write {beyond}")):
        words = ["data", "inspect", str(tmp_path / "missing.jsonl"), "--html", str(page)]
        assert main(words) == 1
        assert said in capsys.readouterr().err.replace("\n", "")
    data, page = tmp_path / "d.jsonl", tmp_path / "new" / "folder" / "r.html"
    data.write_text(json.dumps({"prompt": "p", "chosen": "x", "rejected": "y"}) + "\n")
    assert main(["data", "inspect", str(data), "--html", str(page)]) == 0
    assert page.exists() and [page.name] == [one.name for one in page.parent.iterdir()]


def test_the_page_has_a_command_that_runs_and_a_readable_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "my pairs.jsonl", tmp_path / "report.html"
    row = {"prompt": "p", "chosen": "x", "rejected": "y"}
    rows = [*({**row, "prompt": f"question {n}"} for n in range(8)), row, row]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "inspect", str(path), "--html", str(page)]) == 0
    html = page.read_text()
    command = re.search(r"<pre><code>penchant (.*?)</code></pre>", html)
    assert command is not None
    assert main(shlex.split(unescape(command[1]))) == 0
    assert len((tmp_path / "my pairs.clean.jsonl").read_text().splitlines()) == 9
    finding = html.partition('id="duplicates"')[2].partition("</section>")[0]
    assert "my pairs.jsonl:10" in finding.partition("<details>")[0]
    assert "prefers-color-scheme: dark" in html and "currentColor" in html


def test_an_example_is_read_column_by_column_and_what_cannot_be_seen_is_shown(
    tmp_path: Path,
) -> None:
    path, page = tmp_path / "p.jsonl", tmp_path / "report.html"

    def says(role: str, content: str, **more: str) -> dict[str, str]:
        return {"role": role, "content": content, **more}

    row = {
        "prompt": [says("system", "Be kind."), says("user", "Hi?")],
        "chosen": [says("assistant", "x" * 400)],
        "rejected": [says("assistant", "Go.", name="Eve")],
    }
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, row, {**row, "chosen": " "})))
    assert main(["data", "inspect", str(path), "--html", str(page)]) == 0
    shown = unescape(page.read_text())
    assert f"prompt: \n  system: Be kind.\n  user: Hi?\nchosen: {'x' * 300} … (100" in shown
    assert 'rejected: [{"role": "assistant", "content": "Go.", "name": "Eve"}]' in shown
    assert 'chosen: " "' in shown


def test_what_is_to_be_typed_is_never_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    row = {"prompt": "p", "chosen": "x", "rejected": "y"}
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, {**row, "chosen": "y"})))
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["data", "inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "--drop refused-rows" in shown and "…" not in shown.partition("Cues")[0]


def test_several_processes_find_what_one_does(
    tmp_path: Path, make_pairs: Callable[..., list[Row]]
) -> None:
    path = tmp_path / "p.jsonl"
    rows = make_pairs(3500)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:3400], *rows[:100]]))
    one, two = (scan(Sources(path), num_sampled=50, processes=count) for count in (1, 2))
    assert one.table.tobytes() == two.table.tobytes() and len(one.table) == 3500
    assert np.array_equal(one.signatures, two.signatures)
    assert one.sample == two.sample and len(one.sample) == 50


def test_a_long_line_is_looked_at_like_others(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "p", "chosen": "word " * 2_000_000, "rejected": "b"},
            {"prompt": "q", "chosen": "a", "rejected": "b"}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = inspect(path)
    assert report.counts["pairs"] == 2
    found = scan(Sources(path))
    assert found.table["chosen_characters"].tolist() == [10_000_000, 1]
    assert len(found.sample[0][1].chosen) < 100_000


def test_invalid_utf8_is_a_finding_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    good = b'{"prompt": "p", "chosen": "x", "rejected": "y"}\n'
    path.write_bytes(good + good.replace(b"x", b"\xff") + good.replace(b"x", b"z"))
    finding = inspect(path).finding("refused-rows")
    assert finding is not None and finding.parts["invalid-utf-8"].tolist() == [1]
    assert "p.jsonl:2" in finding.evidence["examples"][0]


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penchant.audit.find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"pip install 'penchant\[data\]'"):
        inspect([{"prompt": "p", "chosen": "x", "rejected": "y"}])
