"""Answers from a server that speaks vLLM's HTTP: handed weights, restarts, refusals.

The server here is a real one that samples from the folders that it is given; the slow tests next
door ask vLLM itself.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import penchant
from penchant.core.errors import ConfigError, TrainingError
from penchant.core.http import HttpError, JsonClient
from penchant.models.lora import add_lora
from penchant.models.policy import PolicyScorer
from penchant.models.scoring import Scorer
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.engines import require_engine
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.sampling.vllm.control import Server, require_private
from penchant.rl.sampling.vllm.server import VllmServerSampler, wait_for
from penchant.rl.sampling.vllm.weights import HandedWeights

END = 2


class Service:
    """A server of one model; `restart` forgets everything that it was handed."""

    def __init__(self, folder, *, raw=False, adapters=True, development=True, max_model_len=512):
        self.folder, self.raw, self.max_model_len = str(folder), raw, max_model_len
        self.allowed = {"adapters": adapters, "development": development}
        self.lock, self.asked, self.loads, self.restarts = threading.Lock(), 0, [], 0
        self.die_at = None
        self.in_use = False  # by requests, so that no cache can be forgotten
        self.device = "cuda"
        self.port = 0
        self._begin()

    def _begin(self):
        self.model, self.adapters, self.label = self._load(self.folder), {}, "default"
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                service.handle(self, None)

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                service.handle(self, json.loads(self.rfile.read(length)))

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def restart(self):
        self.stop()
        time.sleep(0.2)
        self.restarts += 1
        self._begin()

    @staticmethod
    def _load(folder):
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    def handle(self, handler, payload):
        if handler.path == "/v1/completions":
            self.asked += 1
            if self.asked == self.die_at:
                handler.close_connection = True
                threading.Thread(target=self.restart).start()
                return
        with self.lock:
            status, answer = self.answer(handler.path, payload)
        data = json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def answer(self, path, payload):
        kind = "adapters" if path.endswith("lora_adapter") else "development"
        if path not in ("/health", "/v1/models", "/v1/completions") and not self.allowed[kind]:
            return 404, {"detail": "Not Found"}
        if path == "/v1/models":
            served = [{"id": "served", "parent": None, "max_model_len": self.max_model_len}]
            return 200, {"data": [*served, *({"id": n, "parent": "served"} for n in self.adapters)]}
        if path == "/v1/completions":
            return self.complete(payload)
        if path == "/server_info?config_format=json":
            return 200, {"vllm_config": {"device_config": {"device": self.device}}}
        if path == "/v1/load_lora_adapter":
            if payload["lora_name"] in self.adapters:
                return 400, {"error": "has already been loaded"}
            base = self._load(self.folder)
            adapted = PeftModel.from_pretrained(base, payload["lora_path"]).eval()
            self.adapters[payload["lora_name"]] = adapted
            self.loads.append(payload["lora_name"])
        if path == "/v1/unload_lora_adapter" and self.adapters.pop(payload["lora_name"], 0) == 0:
            return 404, {"error": "not found"}
        if path == "/collective_rpc":
            assert payload["method"] == "reload_weights"
            self.model = self._load(payload["kwargs"]["weights_path"])
            self.loads.append(payload["kwargs"]["weights_path"])
        if path == "/reset_prefix_cache" and self.in_use:
            return 200, {"success": False}
        if path == "/update_weight_version":
            self.label = payload["new_version"]
        return 200, {"success": True, "weight_version": self.label}

    def complete(self, payload):
        models = {"served": self.model, **self.adapters}
        if payload["model"] not in models:
            return 404, {"error": f"The model {payload['model']} does not exist."}
        ends = payload.get("stop_token_ids", [])
        sampler = CachedSampler(Scorer(models[payload["model"]], 0), ends)
        sampling = Sampling(
            payload["max_tokens"], payload["temperature"], payload["top_k"], payload.get("top_p", 1)
        )
        (rows,) = sampler.sample(
            [payload["prompt"]],
            Draw(sampling, payload.get("seed", 0) % 2**31, payload.get("n", 1)),
        )
        less = 1.0 if self.raw else 0.0
        choices = [
            {
                "index": i,
                "token_ids": row.ids,
                "logprobs": {"token_logprobs": [value - less for value in row.logprobs]},
            }
            for i, row in enumerate(rows)
        ]
        return 200, {"choices": choices[::-1]}


@pytest.fixture
def serve(tiny_model_dir):
    """Return a function that starts a server."""
    started = []

    def start(**settings):
        started.append(Service(tiny_model_dir, **settings))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def num_letters(completions, **_):
    return [float(len(set(text))) for text in completions]


@pytest.mark.parametrize(("method", "lora_r"), [("grpo", 2), ("ppo", 0)])
def test_every_batch_is_drawn_with_the_weights_of_its_step_though_the_server_restarts(
    serve, tiny_keys, tmp_path, method, lora_r
):
    service = serve()
    service.die_at = 8  # in the midst of a batch
    keys = {name: value for name, value in tiny_keys.items() if name != "max_new_tokens"}
    folder = tmp_path / "handed"
    folder.mkdir()
    penchant.train(
        method, **keys, output=tmp_path / "run", reward=num_letters,
        generation="vllm-server", vllm_url=service.url, vllm_folder=str(folder), lora_r=lora_r,
        max_completion_length=6, batch_size=16, max_steps=12, temperature=0.7,
        **({"num_generations": 4} if method == "grpo" else {"ppo_epochs": 1}),
    )  # fmt: skip
    assert service.restarts == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    steps = [row for row in rows if "logprob/sampling_difference_max" in row]
    assert len(steps) >= 3
    assert max(row["logprob/sampling_difference_max"] for row in steps) < 1e-4
    assert max(abs(row["sampling/ratio_max"] - 1) for row in steps) < 1e-3
    assert len(service.loads) > len(set(service.loads))  # once more after the restart
    assert len(service.adapters) == (lora_r > 0)  # that of the last version alone


@pytest.mark.slow
@pytest.mark.parametrize(("lora_r", "sharding"), [(2, "off"), (2, "full"), (0, "full")])
def test_processes_share_a_server_and_train_what_one_trains(
    serve, tiny_keys, tmp_path, lora_r, sharding
):
    rewards = tmp_path / "letters.py"
    rewards.write_text(f"{inspect.getsource(num_letters)}\n")
    given = {name: value for name, value in tiny_keys.items() if name != "max_new_tokens"}
    given |= {"generation": "vllm-server", "reward": f"{rewards}:num_letters", "max_steps": 4}
    given |= {"batch_size": 16, "num_generations": 4, "max_completion_length": 6}
    given |= {"lora_r": lora_r, "sharding": sharding}
    given |= {"learning_rate": 1e-3, "adam_epsilon": 1e-4}
    alone = {**given, "vllm_url": serve().url, "gradient_accumulation_steps": 2}
    one = penchant.train("grpo", output=tmp_path / "one", **alone)
    both = {**given, "vllm_url": serve().url, "output": tmp_path / "two"}
    words = [word for key, value in both.items() for word in (f"--{key}", str(value))]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "penchant", "train", "grpo", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (expected,) = one.model.glob("*model.safetensors")
    found = load_file(tmp_path / "two" / "model" / expected.name)
    for name, weight in load_file(expected).items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0)
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").open()]
    assert max(row["logprob/sampling_difference_max"] for row in rows) < 1e-4


def policy_of(folder, lora):
    model = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        model = add_lora(model, r=2, alpha=4, dropout=0, target_modules="all-linear")
    return PolicyScorer(model, pad_token_id=0)


def sampler_for(service, folder, *, lora=True, patience=5.0):
    policy = policy_of(folder, lora)
    server = Server.find(service.url, 5.0, 64)
    return VllmServerSampler.start(
        policy, str(folder), [END], server=server, folder=None, side_by_side=8, patience=patience
    )


def test_equal_prompts_get_different_answers_and_the_same_seed_the_same(serve, tiny_model_dir):
    sampler = sampler_for(serve(), tiny_model_dir)
    sampler.sync()
    draw = Draw(Sampling(8), seed=0, n=2)
    first = sampler.sample([[5, 6, 7]] * 3, draw)
    answers = [tuple(answer.ids) for row in first for answer in row]
    assert len(set(answers)) == 6
    assert sampler.sample([[5, 6, 7]] * 3, draw) == first
    assert sampler.sample([[5, 6, 7]] * 3, replace(draw, seed=1)) != first
    share = sampler.sample([[5, 6, 7]] * 2, replace(draw, numbers=[2, 0]))
    assert share == [first[2], first[0]]  # as another process would answer its share


def test_an_adapter_is_not_put_on_the_weights_of_another_run(serve, tiny_model_dir):
    service = serve()
    sampler_for(service, tiny_model_dir)
    sampler_for(service, tiny_model_dir, lora=False).sync()
    sampler_for(service, tiny_model_dir, lora=False).sync()  # all weights are replaced anyhow
    with pytest.raises(ConfigError, match=r"has the weights of another run .* start it again"):
        sampler_for(service, tiny_model_dir)


def test_a_head_that_is_the_embedding_is_refused_where_vllm_keeps_the_old_one(
    serve, tiny_model_dir
):
    service = serve()
    policy = policy_of(tiny_model_dir, lora=False)
    policy.causal_model.config.tie_word_embeddings = True
    ask = {"server": Server.find(service.url, 5.0, 64), "folder": None}
    ask |= {"side_by_side": 8, "patience": 5.0}
    VllmServerSampler.start(policy, str(tiny_model_dir), [END], **ask)
    service.device = "cpu"
    with pytest.raises(ConfigError, match=r"keeps the old head .* train it with LoRA"):
        VllmServerSampler.start(policy, str(tiny_model_dir), [END], **ask)


def test_processes_that_share_a_server_hand_over_once(serve, tiny_model_dir):
    service = serve()
    sampler = sampler_for(service, tiny_model_dir)
    sampler.sync()
    name, folder = sampler.weights.label, str(sampler.weights.folder)
    sampler.server.load_adapter(name, folder, 8)  # as another process, once both saw a restart
    assert service.loads == [name]


def test_all_weights_that_another_process_handed_over_first_are_taken_while_it_asks(
    serve, tiny_model_dir, monkeypatch
):
    """Both saw a restart; the cache cannot be forgotten while the first one's requests run."""
    service = serve()
    sampler = sampler_for(service, tiny_model_dir, lora=False)
    sampler.sync()
    label, folder = sampler.weights.label, str(sampler.weights.folder)
    service.in_use = True
    monkeypatch.setattr("penchant.rl.sampling.vllm.control._RESETS", 1)
    sampler.server.load_weights(label, folder)
    with pytest.raises(TrainingError, match="others use it"):  # none of this run
        sampler.server.load_weights(f"{label}-other", folder)


def test_only_the_present_version_lies_in_the_folder(tiny_model_dir, tmp_path):
    policy = policy_of(tiny_model_dir, lora=False)
    weights = HandedWeights(policy, str(tiny_model_dir), tmp_path)
    for value in (0.25, 0.5):
        with torch.no_grad():
            policy.causal_model.model.norm.weight.fill_(value)
        folder = weights.write()
        assert [*folder.parent.iterdir()] == [folder]
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert float(loaded.model.norm.weight.detach()[0]) == value
        for name, parameter in policy.causal_model.named_parameters():
            assert torch.equal(loaded.get_parameter(name), parameter), name


def test_rank_is_rounded_up_to_what_vllm_takes_and_other_adapters_are_merged(tiny_model_dir):
    adapted = {"alpha": 4, "dropout": 0, "target_modules": "q_proj,v_proj"}
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    policy = PolicyScorer(add_lora(base, r=24, **adapted), 0)
    weights = HandedWeights(policy, str(tiny_model_dir))
    assert weights.rank == 32
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    settings = {"use_dora": True}  # vLLM has none
    policy = PolicyScorer(add_lora(base, r=24, settings=settings, **adapted), 0)
    weights = HandedWeights(policy, str(tiny_model_dir))
    assert weights.rank is None
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    merged = AutoModelForCausalLM.from_pretrained(weights.write())
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(merged(ids).logits, policy.model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "max_length", "message"),
    [
        ({"raw": True}, 64, "start it with --logprobs-mode processed_logprobs"),
        ({"max_model_len": 32}, 64, "at most 32 tokens, and max_length is 64"),
        ({"max_model_len": None}, 64, "is no vLLM server: it lists no model with its length"),
    ],
)
def test_server_that_would_spoil_a_run_is_refused(serve, settings, max_length, message):
    with pytest.raises(ConfigError, match=message):
        Server.find(serve(**settings).url, 5.0, max_length)


@pytest.mark.parametrize(
    ("settings", "lora", "message"),
    [
        ({"adapters": False}, True, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 .*--max-lora-rank 8"),
        ({"development": False}, False, "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_server_that_takes_no_weights_is_told_how_to_start(
    serve, tiny_model_dir, settings, lora, message
):
    sampler = sampler_for(serve(**settings), tiny_model_dir, lora=lora)
    with pytest.raises(ConfigError, match=message):
        sampler.sync()


def test_addresses_that_strangers_reach_are_refused():
    for private in ("http://127.0.0.1:8000", "http://localhost:8000", "http://10.1.2.3:8000"):
        require_private(private)
    for public in ("http://8.8.8.8:8000", "https://93.184.216.34"):
        with pytest.raises(ConfigError, match="public address"):
            require_private(public)
    for partial in ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"):
        with pytest.raises(ConfigError, match="give http://HOST:PORT"):
            require_private(partial)


def test_what_is_not_there_is_refused_before_anything_is_loaded(serve):
    service = serve()
    options = penchant.METHODS["grpo"].options(
        reward="r", generation="vllm-server", vllm_url=service.url, vllm_server_timeout=1
    )
    require_engine(options, 64)
    service.stop()
    with pytest.raises(ConfigError, match="start a server first: vllm serve MODEL"):
        require_engine(options, 64)
    service._begin()


def test_a_server_that_stays_away_ends_the_run_with_what_to_do(serve, tiny_model_dir):
    service = serve()
    sampler = sampler_for(service, tiny_model_dir, patience=0.5)
    sampler.sync()
    service.stop()
    with pytest.raises(TrainingError, match=r"stayed away .* raise vllm_server_timeout"):
        sampler.sample([[5, 6]], Draw(Sampling(4), seed=0, n=2))
    service._begin()
    wait_for(sampler.server, 1.0, HttpError("it was away"))


def test_what_a_server_says_of_a_failure_is_in_the_message(serve):
    service = serve()
    with pytest.raises(HttpError, match=r"answered 404: .*does not exist") as caught:
        JsonClient(service.url, 5.0).post("/v1/completions", {"model": "other"})
    assert caught.value.status == 404 and not caught.value.passing


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"generation": "vllm-server"}, "needs vllm_url"),
        ({"vllm_url": "http://127.0.0.1:1"}, "vllm_url is not read with generation auto"),
        ({"generation": "vllm", "vllm_folder": "f"}, "vllm_folder is not read .* vllm-server"),
        (
            {"generation": "vllm-server", "vllm_url": "http://h:1", "vllm_dtype": "bf16"},
            "vllm_dtype is not read with generation vllm-server; .* to vllm",
        ),
    ],
)
def test_keys_that_nothing_would_read_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        penchant.METHODS["grpo"].options(reward="r", **keys)
