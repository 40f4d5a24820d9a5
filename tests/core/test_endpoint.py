"""A model behind HTTP: a real local server that answers, fails, stalls and babbles."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penchant.core.asking import Usage
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
        self.choices = {}  # what stands in place of an answer, by what was asked
        self.moderated, self.listed, self.silent, self.busy = "", 200, 0, ()
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

    def send(self, status, body, missing=0, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + missing))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.server.silent:
            self.server.silent -= 1
            self.close_connection = True
            return
        models = {"data": [{"id": name} for name in self.server.models]}
        shown = self.headers.get("Authorization")
        status = 401 if shown == "Bearer wrong-key" else self.server.listed
        self.send(status, json.dumps(models).encode() if status == 200 else b"no such key")

    def do_POST(self):
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        if server.moderated and text in ("x", "xxx"):
            self.send(403, server.moderated.encode())
            return
        if text in server.busy:
            self.send(429, b"slow down", Retry_After="20")
            return
        with server.lock:
            server.tries[text] += 1
            first = server.tries[text] == 1
            server.number += first
            fault = server.every and first and server.number % server.every == 0
            kind = FAULTS[server.number // server.every % len(FAULTS)] if fault else None
        if kind == "error":
            self.send(529, b"overloaded")
        elif kind == "busy":
            self.send(429, b"slow do", missing=2, Retry_After="0.01")
        elif kind == "malformed":
            self.send(200, b"<html>bad g\xe2teway</html>")
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
            choice = server.choices.get(text, {"message": message})
            body = {"choices": [choice], "usage": usage}
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


@pytest.mark.parametrize(
    ("choice", "temperature", "tries", "refused", "reason"),
    [
        ({"message": {"content": None, "refusal": "No."}}, 0.0, 1, 1, "its message has no text"),
        ({"message": {"refusal": "No."}}, 1.0, 3, 3, "its message has no text"),
        # As of a provider that has not loaded the model yet: nobody refused.
        ({"message": {"content": ""}, "finish_reason": "stop"}, 0.0, 3, 0, "message has no text"),
        (
            {"message": {"content": "Score: 9"}, "finish_reason": "content_filter"},
            0.0, 1, 1, "its message has no text",
        ),
        (
            {"message": {"content": " "}, "finish_reason": "length"},
            0.0, 1, 0, r"max_tokens \(512\) cut its answer off; set max_tokens higher",
        ),
        (
            {"message": {"content": "I think"}, "finish_reason": "length"},
            0.0, 1, 0, r"set max_tokens higher: its answer holds no verdict: 'I think'",
        ),
        ({"message": {"content": ""}, "finish_reason": "error"}, 0.0, 3, 0, "provider failed"),
        ({}, 0.0, 3, 0, "it sent no chat completion"),
    ],
)  # fmt: skip
def test_an_answer_without_text_costs_and_is_not_asked_for_again_where_it_would_be_the_same(
    choice, temperature, tries, refused, reason, serve, monkeypatch
):
    monkeypatch.setattr("penchant.core.asking.LONGEST_PAUSE", 0.01)
    server = serve()
    server.choices["x"] = choice
    settings = EndpointSettings(
        url=server.url, retries=2, temperature=temperature, price_input=1.0, price_output=2.0
    )
    endpoint = Endpoint(settings)
    (reply,) = endpoint.ask(chats([1]), read)
    assert reply.value is None and re.search(reason, reply.reason)
    usage = endpoint.usage
    assert (usage.asked, usage.failed, usage.refused) == (tries, 1, refused)
    assert usage.input_tokens == 10 * tries
    assert usage.cost == pytest.approx(20 * tries / 1e6)
    assert f"1 failed, {refused} refused; {15 * tries} tokens" in str(usage)
    endpoint.close()


def test_servers_of_one_cache_that_serve_under_one_name_are_asked_each(serve, tmp_path):
    first, second = serve().url, serve().url
    for url, asked in ((first, 2), (second, 2), (f"{first}/", 0)):
        endpoint = Endpoint(EndpointSettings(url=url, cache=tmp_path / "answers.db"))
        assert [reply.value for reply in endpoint.ask(chats([1, 2, 1]), read)] == [1, 2, 1]
        assert (endpoint.usage.asked, endpoint.usage.cached) == (asked, 2 - asked)
        endpoint.close()


def test_where_all_answers_of_a_named_model_are_known_no_server_is_needed(
    serve, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("penchant.core.asking.LONGEST_PAUSE", 0.01)
    server = serve()
    settings = EndpointSettings(url=server.url, model="judge", cache=tmp_path / "answers.db")
    server.silent = 3
    with pytest.raises(ConfigError, match="no model answers"):  # of an empty cache
        Endpoint(settings)
    server.silent = 2  # a look that breaks off is no end
    endpoint = Endpoint(settings)
    assert [reply.value for reply in endpoint.ask(chats([1, 2]), read)] == [1, 2]
    endpoint.close()
    server.silent = 3
    endpoint = Endpoint(settings)
    assert "does not say whether it serves judge" in caplog.text
    assert [reply.value for reply in endpoint.ask(chats([1, 2]), read)] == [1, 2]
    assert (endpoint.usage.asked, endpoint.usage.cached) == (0, 2)
    endpoint.close()


def test_an_answer_that_cannot_be_kept_ends_in_one_line(serve, tmp_path):
    server, file = serve(), tmp_path / "answers.db"
    server.choices["xx"] = {"message": {"content": "Score: 2\ud800"}}
    endpoint = Endpoint(EndpointSettings(url=server.url, cache=file))
    (half,) = endpoint.ask(chats([2]), len)
    assert half.value == 9  # half a character, which no file can hold, is replaced there
    with sqlite3.connect(file) as other:
        assert [text for (text,) in other.execute("SELECT text FROM answers")] == ["Score: 2?"]
        other.execute("DROP TABLE answers")
    with pytest.raises(ConfigError, match=r"answers.db: no such table.* name a new file"):
        endpoint.ask(chats([1]), read)
    endpoint.close()


@pytest.mark.parametrize("said", ["your input was flagged", "forbidden"])
def test_a_403_is_of_one_prompt_where_it_says_so_or_others_are_answered(said, serve):
    server = serve()
    endpoint = Endpoint(EndpointSettings(url=server.url, concurrency=1))
    server.moderated = said
    good, bad = endpoint.ask(chats([2, 1]), read)
    assert (good.value, bad.value) == (2, None)
    assert bad.reason.endswith(f"answered 403: {said}")
    assert (endpoint.usage.asked, endpoint.usage.refused, endpoint.usage.failed) == (2, 1, 1)
    endpoint.close()
    endpoint = Endpoint(EndpointSettings(url=server.url, concurrency=1))
    if said == "forbidden":
        with pytest.raises(ConfigError, match=r"403: forbidden; set the env.* OPENAI_API_KEY"):
            endpoint.ask(chats([1]), read)
    else:
        assert endpoint.ask(chats([1]), read)[0].value is None
    endpoint.close()


def test_many_403_in_a_row_end_with_the_remedy_whatever_the_address_is_called(serve, monkeypatch):
    monkeypatch.setattr("penchant.core.asking.FORBIDDEN_IN_ROW", 2)
    server = serve()
    server.moderated = "forbidden"
    for number in (1, 3):
        endpoint = Endpoint(EndpointSettings(url=server.url, concurrency=1))
        first, *_ = endpoint.ask(chats([2, number, 4]), read)  # alone, each is of its prompt
        assert first.value == 2
        endpoint.close()
    endpoint = Endpoint(EndpointSettings(url=server.url, concurrency=1))
    with pytest.raises(ConfigError, match=r"403: forbidden; set the env.* OPENAI_API_KEY"):
        endpoint.ask(chats([2, 1, 3, 4]), read)
    endpoint.close()
    moderation = f"{server.url}/moderation"
    endpoint = Endpoint(EndpointSettings(url=moderation, model="judge", concurrency=1))
    with pytest.raises(ConfigError, match=r"403: forbidden; set the env.* OPENAI_API_KEY"):
        endpoint.ask(chats([1]), read)
    endpoint.close()


def test_an_error_that_ends_all_requests_waits_for_no_further_try(serve):
    server = serve()
    server.moderated, server.busy = "forbidden", ("xx",)
    endpoint = Endpoint(EndpointSettings(url=server.url, concurrency=2))
    began = time.monotonic()
    with pytest.raises(ConfigError, match="403: forbidden"):
        endpoint.ask(chats([2, 1]), read)
    assert time.monotonic() - began < 10
    endpoint.close()


def test_what_cannot_be_asked_is_named_before_anything_is_asked(serve, monkeypatch, caplog):
    monkeypatch.setattr("penchant.core.asking.LONGEST_PAUSE", 0.01)
    server = serve(models=("a", "b", "models/gem", "own:latest", *"vwxyz"))

    def endpoint(**keys):
        return Endpoint(EndpointSettings(url=server.url, **keys))

    with pytest.raises(ConfigError, match=r"serves a, b, .*, v and 4 more; set model to one"):
        endpoint()
    for known in ("b", "gem", "own", "a:nitro"):
        assert endpoint(model=known).model == known
    server.listed = 404  # not every server lists its models
    assert endpoint(model="xy").model == "xy"
    assert not caplog.text
    server.listed = 200  # a deployment, a preset, or a server that ignores the name
    assert endpoint(model="xy").model == "xy"
    assert re.search(r"v1 does not list xy, but [xy], .* more: if it does", caplog.text)
    for status in (400, 401, 403, 503):  # a key may be allowed to ask and not to list
        server.listed = status
        caplog.clear()
        named = endpoint(model="xy")
        assert (named.model, named.usage) == ("xy", Usage())
        assert re.search(rf"v1 does not say whether it serves xy \(.*{status}: no", caplog.text)
    server.listed = 404
    with pytest.raises(ConfigError, match="models lists no models; set model"):
        endpoint()
    for refused in (401, 403):
        server.listed = refused
        with pytest.raises(ConfigError, match=rf"{refused}: no such key; set the env.* OPENAI_API"):
            endpoint()
    server.listed = 200
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key\r")
    with pytest.raises(ConfigError, match=r"401: no such key; set the env.* OPENAI_API_KEY"):
        endpoint()
    with pytest.raises(ConfigError, match="holds a name or a password") as caught:
        Endpoint(EndpointSettings(url="http://me:secret@127.0.0.1:9/v1"))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"write it as http://host:port/v1"):
        Endpoint(EndpointSettings(url="localhost/v1"))
    for named in (None, "a"):
        with pytest.raises(ConfigError, match=r"no model answers at http://127.0.0.1:9/v1"):
            Endpoint(EndpointSettings(url="http://127.0.0.1:9/v1", model=named))
