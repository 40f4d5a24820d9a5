"""A model behind HTTP: a real local server that answers, fails, stalls and babbles."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penchant.core.endpoint import Endpoint, EndpointSettings
from penchant.core.errors import ConfigError

FAULTS = ("error", "stall", "malformed", "no verdict", "busy")


class Judge(ThreadingHTTPServer):
    """Answers with the length of what it was asked; a share of the first tries fails."""

    daemon_threads = True

    def __init__(self, share_of_faults=0.0, models=("judge",), stall=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.every = round(1 / share_of_faults) if share_of_faults else 0
        self.models, self.stall = models, stall
        self.tries, self.answered = Counter(), Counter()
        self.lock = threading.Lock()
        self.number = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """As vLLM's server speaks."""

    def log_message(self, *_):
        pass

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        models = {"data": [{"id": name} for name in self.server.models]}
        self.send(200, json.dumps(models).encode())

    def do_POST(self):
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        if self.headers.get("Authorization") == "Bearer wrong":
            self.send(401, b"no such key")
            return
        with server.lock:
            server.tries[text] += 1
            first = server.tries[text] == 1
            server.number += first
            fault = server.every and first and server.number % server.every == 0
            kind = FAULTS[server.number // server.every % len(FAULTS)] if fault else None
        if kind == "error":
            self.send(500, b"the engine died")
        elif kind == "busy":
            self.send(429, b"slow down", Retry_After="0.01")
        elif kind == "malformed":
            self.send(200, b"<html>bad gateway</html>")
        elif kind == "stall":
            time.sleep(server.stall)  # and the connection is closed without an answer
            self.close_connection = True
        else:
            words = "I refuse." if kind else f"Score: {len(text)}"
            if not kind:
                with server.lock:
                    server.answered[text] += 1
            message = {"role": "assistant", "content": words}
            usage = {"prompt_tokens": 10, "completion_tokens": 5}
            body = {"choices": [{"message": message}], "usage": usage}
            self.send(200, json.dumps(body).encode())


@pytest.fixture
def serve():
    """Return a function that starts a server."""
    servers = []

    def start(**options):
        servers.append(Judge(**options))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def read(text):
    return int(text.removeprefix("Score: ")) if text.startswith("Score: ") else None


def chats(numbers):
    return [[{"role": "user", "content": "x" * number}] for number in numbers]


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_with_a_fifth_failing_no_answer_is_lost_and_none_judged_twice(count, serve, tmp_path):
    stall = 7.0 if count > 100 else 0.0
    server = serve(share_of_faults=0.2, stall=stall)
    settings = EndpointSettings(
        url=server.url, cache=tmp_path / "answers.db", timeout=5.0, concurrency=16,
        price_input=1.0, price_output=2.0,
    )  # fmt: skip
    numbers = [1 + i % count for i in range(count + 20)]
    endpoint = Endpoint(settings)
    assert [reply.value for reply in endpoint.ask(chats(numbers), read)] == numbers
    assert len(server.answered) == count
    assert set(server.answered.values()) == {1}
    usage = endpoint.usage
    assert (usage.asked, usage.retried, usage.failed, usage.cached) == (
        1.2 * count,
        count // 5,
        0,
        0,
    )
    answers = count + count // 25  # one fault of five is an answer without a verdict
    assert usage.input_tokens == 10 * answers
    assert usage.cost == pytest.approx((usage.input_tokens + 2 * usage.output_tokens) / 1e6)
    endpoint.close()

    again = Endpoint(settings)
    assert [reply.value for reply in again.ask(chats(numbers), read)] == numbers
    assert (again.usage.asked, again.usage.cached) == (0, count)
    assert sum(server.tries.values()) == 1.2 * count
    again.close()


def test_what_fails_every_time_says_why(serve):
    server = serve()
    endpoint = Endpoint(EndpointSettings(url=server.url, retries=1))
    good, bad = endpoint.ask(chats([3, 7]), lambda text: None if "7" in text else read(text))
    assert good.value == 3
    assert bad.value is None
    assert bad.reason == "its answer holds no verdict: 'Score: 7'"
    assert endpoint.usage.failed == 1
    endpoint.close()


def test_what_cannot_be_asked_is_named(serve, monkeypatch):
    server = serve(models=("a", "b"))
    with pytest.raises(ConfigError, match="serves a, b; set model to one"):
        Endpoint(EndpointSettings(url=server.url))
    closed = server.url
    with pytest.raises(ConfigError, match=r"write it as http://host:port/v1"):
        Endpoint(EndpointSettings(url="localhost/v1"))
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    endpoint = Endpoint(EndpointSettings(url=closed, model="a"))
    with pytest.raises(ConfigError, match=r"401: no such key; set the env.* OPENAI_API_KEY"):
        endpoint.ask(chats([1]), read)
    endpoint.close()
    with pytest.raises(ConfigError, match=r"no model answers at http://127.0.0.1:9/v1"):
        Endpoint(EndpointSettings(url="http://127.0.0.1:9/v1"))
