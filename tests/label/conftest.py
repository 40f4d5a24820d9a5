"""A file of pairs, a client of the application, a server process, a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from penchant.label.app import create_app
from penchant.label.session import open_session

TOKEN = "token"
BASE = f"http://127.0.0.1/{TOKEN}/"


def write_pairs(path: Path, number: int = 3, **texts: str) -> Path:
    """Write pairs whose texts say which they are; `texts` replaces those of the first."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"prompt {n}", "completion_a": f"first {n}", "completion_b": f"second {n}"}
        for n in range(number)
    ]
    rows[0].update(texts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Page:
    """The application as an annotator meets it, without a browser."""

    def __init__(self, file: Path, **options: Any) -> None:
        self.session = open_session(file, **options)
        app = create_app(self.session, TOKEN)
        self.client = TestClient(app, base_url="http://127.0.0.1")
        self.client.base_url = BASE

    def show(self, annotator: str = "ann", **query: str) -> str:
        found = self.client.get("compare", params={"annotator": annotator, **query})
        assert found.status_code == 200, found.text
        return found.text

    def item(self, annotator: str = "ann") -> int | None:
        """Which item waits for an annotator."""
        found = re.search(r'data-item="(\d*)"', self.show(annotator))
        assert found
        return int(found[1]) if found[1] else None

    def post(self, where: str, annotator: str = "ann", **values: Any) -> Any:
        values = {"annotator": annotator, **values}
        return self.client.post(where, data=values, follow_redirects=False)

    def answer(self, side: str, annotator: str = "ann", **values: Any) -> Any:
        """Answer what waits, as the page's form does."""
        return self.post("answer", annotator, side=side, item=self.item(annotator), **values)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a file of pairs; the last page is closed before the next."""
    opened: list[Page] = []

    def open_page(file: Path | None = None, **options: Any) -> Page:
        for one in opened:
            one.session.store.close()
        opened[:] = [Page(file or write_pairs(tmp_path / "pairs.jsonl"), **options)]
        return opened[0]

    yield open_page
    for one in opened:
        one.session.store.close()


class Server:
    """`penchant label` in a process of its own."""

    def __init__(self, file: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penchant", "label", str(file), *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                self.address = found[0]
                return
        raise AssertionError(f"no address in {said}")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def interrupt(self) -> str:
        self.process.send_signal(signal.SIGINT)
        return str(self.process.communicate(timeout=10)[0])


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server; those still running at the end are killed."""
    started: list[Server] = []

    def start(file: Path, *words: str) -> Server:
        started.append(Server(file, *words))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
