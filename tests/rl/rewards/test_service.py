"""A service of the user's own as a reward: a real local server, a fifth of whose answers fail."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penchant.core.errors import ConfigError, RewardError
from penchant.methods.grpo import GRPOOptions
from penchant.rl.rewards.make import find_rewards, make_rewards
from penchant.rl.rewards.samples import Sample

NAN = float("nan")
FAULTS = ("error", "stall", "malformed", "too few", "no number")


class Rater(ThreadingHTTPServer):
    """Scores a completion by its length; every fifth request that it gets first fails."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.faults, self.stall = answer, False, 0.0
        self.asked, self.scored, self.bodies = 0, Counter(), []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.asked += 1
            fault = FAULTS[server.asked // 5 % 5] if server.faults and server.asked % 5 == 0 else ""
        if fault == "stall":
            time.sleep(server.stall)  # and the connection is closed without an answer
            self.close_connection = True
            return
        answer = {"malformed": "<html>", "too few": [], "no number": ["x"] * len(body["prompts"])}
        sent = server.answer(body) if fault in ("", "error") else answer[fault]
        if not fault:
            server.scored.update(body["completions"])
        status, sent = sent if isinstance(sent, tuple) else (500 if fault == "error" else 200, sent)
        text = json.dumps(sent).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def serve(monkeypatch):
    servers = []
    monkeypatch.setattr("penchant.core.asking.LONGEST_PAUSE", 0.01)

    def start(answer=lambda body: [len(text) for text in body["completions"]]):
        servers.append(Rater(answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def samples(*completions, **columns):
    return [
        Sample("Why?", text, [], [], True, {n: v[i] for n, v in columns.items()}, f"rows:{i + 1}")
        for i, text in enumerate(completions)
    ]


def rewards(spec, **options):
    chosen = GRPOOptions(reward=spec, reward_normalization="none", **options)
    return make_rewards(find_rewards([spec]), chosen, None)


def written(tmp_path, text):
    (tmp_path / "service.yaml").write_text(text)
    return f"http:{tmp_path / 'service.yaml'}"


def test_with_a_fifth_failing_each_answer_is_scored_once_and_kept(serve, tmp_path):
    server = serve()
    server.faults, server.stall = True, 0.3
    spec = written(tmp_path, f"url: {server.url}\ntimeout: 0.2\ncache: s.db\nbatch_size: 2\n")
    texts = ["x" * (1 + i % 60) for i in range(70)]
    made = rewards(spec)
    assert made.score(samples(*texts)).rewards == [float(len(text)) for text in texts]
    assert len(server.scored) == 60
    assert set(server.scored.values()) == {1}
    usage = made.rewards[0].usage
    assert (usage.asked, usage.failed) == (server.asked, 0)
    assert usage.retried == server.asked // 5 == usage.asked - 30
    assert rewards(spec).score(samples(*texts)).rewards == [float(len(text)) for text in texts]
    assert usage.asked == server.asked


def test_prompts_completions_and_columns_are_sent_and_null_is_no_score(serve, tmp_path):
    server = serve(lambda body: {"rewards": [None if a == 7 else a for a in body["answer"]]})
    made = rewards(server.url, on_reward_error="drop")
    found = made.score(samples("a", "b", answer=[3, 7], note=["n", None]))
    assert found.by_name["score"] == pytest.approx([3.0, NAN], nan_ok=True)
    assert server.bodies == [
        {
            "answer": [3, 7],
            "note": ["n", None],
            "prompts": ["Why?", "Why?"],
            "completions": ["a", "b"],
        }
    ]
    assert made.rewards[0].usage.failed == 1
    spec = written(tmp_path, f"url: {server.url}\ncolumns: [answer]\n")
    rewards(spec).score(samples("a", answer=[3], note=["private"]))
    assert "note" not in server.bodies[-1]
    with pytest.raises(RewardError, match=r"rows:1 cannot be sent as JSON .* not JSON serializ"):
        rewards(server.url).score(samples("a", answer=[{1, 2}]))


def test_one_of_several_rewards_is_named_after_the_address(serve):
    server = serve(lambda body: {"kind": [1.0], "safe": [-0.5]})
    assert rewards(f"{server.url}#safe").score(samples("a")).by_name == {"safe": [-0.5]}
    with pytest.raises(ConfigError, match=r"sent kind, safe; say which is the reward: .*#kind"):
        rewards(server.url).score(samples("a"))
    with pytest.raises(ConfigError, match="asks for 'sage', and the service sent kind, safe"):
        rewards(f"{server.url}#sage").score(samples("a"))


def test_what_the_service_refuses_is_left_out_and_what_it_refuses_always_ends_the_run(
    serve, tmp_path
):
    def answer(body):
        return (422, "too long") if "long" in body["completions"] else [1.0] * len(body["prompts"])

    server = serve(answer)
    found = rewards(server.url, on_reward_error="drop").score(samples("a", "long", "b"))
    assert found.rewards == pytest.approx([1.0, NAN, 1.0], nan_ok=True)
    assert server.asked == 4  # together, then each by itself: a refusal is not asked for again
    with pytest.raises(RewardError, match=r"failed for rows:2.*answered 422: \"too long\""):
        rewards(server.url).score(samples("a", "long"))
    asked = server.asked
    dead = rewards(written(tmp_path, f"url: {server.url}\nretries: 1\n"), on_reward_error="drop")
    server.answer = lambda body: (500, "gone")
    with pytest.raises(RewardError, match=r"answered 500: \"gone\"; so did every other of 3"):
        dead.score(samples("a", "b", "c"))
    assert server.asked == asked + 2 + 3  # together twice, and each once by itself
    with pytest.raises(ConfigError, match=r"401: \"no\"; set the environment variable REWARD_API"):
        rewards(serve(lambda body: (401, "no")).url).score(samples("a"))


def test_a_service_that_is_not_there_is_named_before_anything_loads(tmp_path):
    for spec, message in (
        ("http://127.0.0.1:9/score", "no service listens at http://127.0.0.1:9/score"),
        ("http:nowhere.yaml", "no such file; write http://host:port/path"),
        (written(tmp_path, "url: http://127.0.0.1:9\nsize: 3\n"), "size: Extra.*known keys are"),
        ("http://host:port/score", "write it as http://host:port/path"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_rewards([spec])
