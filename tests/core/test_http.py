"""JSON over HTTP, from servers of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from penchant.core.errors import ConfigError
from penchant.core.http import HttpError, JsonClient, bearer


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


@pytest.fixture
def answers() -> Iterator[Callable[..., JsonClient]]:
    """Return a function that serves these bytes, piece by piece, and closes the connection."""
    made: list[Any] = []

    def start(
        *pieces: bytes, pause: float = 0.0, timeout: float = 10.0, **options: Any
    ) -> JsonClient:
        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                while self.rfile.readline().strip():
                    """Read the request's head."""
                try:
                    for piece in pieces:
                        self.wfile.write(piece)
                        time.sleep(pause)
                except OSError:
                    """The client has given up."""

        made.append(ThreadingTCPServer(("127.0.0.1", 0), Handler))
        made[-1].daemon_threads = True
        threading.Thread(target=made[-1].serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{made[-1].server_address[1]}"
        return JsonClient(url, timeout, proxies=False, **options)

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


def head(status: str, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


JSON, SHORT = "Content-Type: application/json", "Content-Length: 100"


@pytest.mark.parametrize(
    ("pieces", "status", "passing", "message"),
    [
        ([head("429 Busy", SHORT, "Retry-After: 2"), b"slow"], 429, True, "answered 429: Busy"),
        ([head("400 Bad", SHORT), b"too long"], 400, False, "answered 400: Bad"),
        ([head("200 OK", JSON), b'"\xff"'], 502, True, "answered what is no JSON"),
        ([head("200 OK", JSON), b"[" * 100_000], 502, True, "answered what is no JSON"),
        ([head("200 OK", SHORT), b"{}"], None, True, "does not answer: IncompleteRead"),
        ([head("520 Unknown", JSON), b"{}"], 520, True, "answered 520: {}"),
        ([head("529 Overloaded")], 529, True, "answered 529: Overloaded"),
        ([head("409 Conflict")], 409, True, "answered 409"),
        ([head("425 Too Early")], 425, True, "answered 425"),
        ([head("501 Unsupported method")], 501, False, "answered 501"),
        ([head("404 Not Found")], 404, False, "answered 404"),
    ],
)
def test_whether_asking_again_may_help_is_known_however_an_answer_breaks_off(
    pieces: list[bytes],
    status: int | None,
    passing: bool,
    message: str,
    answers: Callable[..., JsonClient],
) -> None:
    with pytest.raises(HttpError, match=message) as caught:
        answers(*pieces).get("/models")
    assert (caught.value.status, caught.value.passing) == (status, passing)
    assert caught.value.retry_after == (2.0 if status == 429 else None)


@pytest.mark.parametrize("first", [head("502 Bad Gateway", SHORT), head("200 OK", SHORT)])
@pytest.mark.parametrize("pause", [0.1, 2.0], ids=["trickles", "stalls"])
def test_a_try_ends_in_time_whether_its_answer_stalls_or_trickles(
    first: bytes, pause: float, answers: Callable[..., JsonClient]
) -> None:
    began = time.monotonic()
    with pytest.raises(HttpError) as caught:
        answers(first, *[b"x"] * 20, pause=pause, timeout=0.3).get("/models")
    assert caught.value.passing and time.monotonic() - began < 1.5


@pytest.mark.parametrize("first", [head("200 OK", "Content-Length: 3"), head("200 OK")])
def test_an_answer_that_is_whole_just_after_the_deadline_is_kept(
    first: bytes, answers: Callable[..., JsonClient]
) -> None:
    late = answers(first, b"[", b"1]", b"", pause=0.7, timeout=1.2)
    assert late.get("/score") == [1]


def test_json_is_read_whatever_type_the_server_calls_it(answers: Callable[..., JsonClient]) -> None:
    assert answers(head("200 OK"), b'{"rewards": [1]}').get("/score") == {"rewards": [1]}
    assert answers(head("200 OK", "Content-Type: text/html"), b"[1, 2]").get("/score") == [1, 2]
    assert answers(head("200 OK"), b"all is \xffell").get("/health") == "all is \ufffdell"


def test_a_host_that_no_request_can_name_does_not_answer() -> None:
    with pytest.raises(HttpError, match=r"http://\.example/v1 does not answer"):
        JsonClient("http://.example/v1", 1.0, proxies=False).get("")


def test_a_key_is_stripped_and_never_shown(
    answers: Callable[..., JsonClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", " sk-secret-1\r\n")
    headers = bearer("SOME_KEY")
    assert headers == {"Authorization": "Bearer sk-secret-1"}
    client = answers(head("401 No"), b"no key sk-secret-1, ask us", headers=headers)
    with pytest.raises(HttpError, match=r"answered 401: no key \(Authorization\), ask us"):
        client.get("/models")
    assert "secret" not in repr(client)
    for wrong in ("sk-se\rcret", "sk se", "sk-s\u00e9", "sk-\u201csecret\u201d"):
        monkeypatch.setenv("SOME_KEY", wrong)
        with pytest.raises(ConfigError, match="SOME_KEY holds characters that no key") as caught:
            bearer("SOME_KEY")
        assert "sk" not in str(caught.value)
    monkeypatch.setenv("SOME_KEY", "\n")
    assert bearer("SOME_KEY") == {}
