"""JSON over HTTP, from servers of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from penchant.core.http import JsonClient


@pytest.fixture
def servers() -> Iterator[list[Any]]:
    """Two servers that keep the keys that they are shown; the first one sends on to the second."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Write nothing to the terminal."""

        def do_GET(self) -> None:
            self.server.shown.append(self.headers.get("Authorization"))  # type: ignore[attr-defined]
            onward = self.server.onward  # type: ignore[attr-defined]
            self.send_response(302 if onward else 200)
            if onward:
                self.send_header("Location", onward)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    made: list[Any] = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server, onward in zip(made, (f"http://127.0.0.1:{made[1].server_port}/", ""), strict=True):
        server.shown, server.onward = [], onward
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def test_a_key_is_shown_to_the_address_it_is_for_alone(servers: list[Any]) -> None:
    url = f"http://127.0.0.1:{servers[0].server_port}"
    client = JsonClient(url, 5.0, {"Authorization": "Bearer secret"}, proxies=False)
    assert client.get("/models") == {}
    assert [server.shown for server in servers] == [["Bearer secret"], [None]]
