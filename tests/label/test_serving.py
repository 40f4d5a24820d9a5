"""A real server process: on loopback alone, stopped cleanly, killed without a loss."""

from __future__ import annotations

import http.client
import random
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from penchant.cli.main import main
from penchant.label.session import open_session

from .conftest import write_pairs


def post(address: str, action: str, **values: object) -> None:
    """Post a form and follow to the next page; raises where the server is gone."""
    urllib.request.urlopen(
        address + action, urllib.parse.urlencode(values).encode(), timeout=10
    ).read()


def labelled(file: Path) -> dict[int, str]:
    session = open_session(file)
    found = {one.item: one.label for one in session.store.answers()}
    session.store.close()
    return found


def answer_until_killed(address: str, annotator: str, acknowledged: list[int]) -> None:
    """Answer item after item; those that were acknowledged are noted."""
    try:
        while True:
            query = urllib.parse.urlencode({"annotator": annotator})
            text = urllib.request.urlopen(f"{address}compare?{query}", timeout=10).read().decode()
            item = int(re.search(r'data-item="(\d+)"', text)[1])
            post(address, "answer", annotator=annotator, item=item, side="tie")
            acknowledged.append(item)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException):
        return  # it was killed


def test_killed_server_loses_no_acknowledged_answer(tmp_path, serve):
    file = write_pairs(tmp_path / "f.jsonl", 5000)
    chance, acknowledged = random.Random(0), []
    for _ in range(3):
        server = serve(file)
        clients = [
            threading.Thread(target=answer_until_killed, args=(server.address, name, acknowledged))
            for name in ("ann", "bob")
        ]
        for client in clients:
            client.start()
        time.sleep(chance.uniform(0.3, 1.0))
        server.kill()
        for client in clients:
            client.join()
    found = labelled(file)
    assert len(acknowledged) > 30
    assert set(acknowledged) <= set(found)
    assert len(acknowledged) == len(set(acknowledged)), "none was asked for again"
    assert len(found) <= len(acknowledged) + 6, (
        "at most the one under way, for each client and kill"
    )


def test_stopped_server_says_what_it_has(tmp_path, serve):
    file = write_pairs(tmp_path / "f.jsonl")
    server = serve(file)
    urllib.request.urlopen(server.address + "compare?annotator=ann").read()
    post(server.address, "answer", annotator="ann", item=0, side="tie")
    said = server.interrupt()
    assert "stopped; 1 answer in" in said
    assert server.process.returncode == 0
    assert not Path(f"{file}.labels.sqlite-wal").exists(), "the database is one file again"
    again = serve(file)
    assert again.address != server.address, "the token is new"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/net")
def test_only_loopback_is_listened_on(tmp_path, serve):
    server = serve(write_pairs(tmp_path / "f.jsonl"))
    port = urllib.parse.urlsplit(server.address).port
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    ]  # fmt: skip
    assert listening == [f"0100007F:{port:04X}"]


def test_port_in_use_is_named_and_no_database_made(tmp_path, capsys):
    file = write_pairs(tmp_path / "f.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["label", str(file), "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["label", str(file), "--port", "70000"]) == 1
    assert "port must be 0 to 65535, got 70000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "markdown_it"])
def test_missing_extra_is_named(tmp_path, capsys, monkeypatch, missing):
    for name in [one for one in sys.modules if one.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("app", "guard", "render"):
        monkeypatch.delitem(sys.modules, f"penchant.label.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["label", str(write_pairs(tmp_path / "f.jsonl"))]) == 1
    assert "pip install 'penchant[label]'" in capsys.readouterr().err
