"""vLLM itself, in a virtual environment of its own: what it samples is what is scored.

PENCHANT_VLLM_PYTHON names the Python of an environment with vLLM and with what Penchant needs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[4] / "src"
# What an engine does to a run that it may not do: answers and weights are handed back as JSON.
RUN = """
import json, sys
import penchant

def num_letters(completions, **_):
    return [float(len(set(text))) for text in completions]

if __name__ == "__main__":
    penchant.train("grpo", reward=num_letters, **json.loads(sys.argv[1]))
"""
ASK = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
from penchant.methods import METHODS
from penchant.models.policy import PolicyScorer
from penchant.rl.sampling.engines import Place, make_sampler
from penchant.rl.sampling.base import Draw, Sampling

if __name__ == "__main__":
    folder = sys.argv[1]
    policy = PolicyScorer(AutoModelForCausalLM.from_pretrained(folder), 0)
    options = METHODS["grpo"].options(
        reward="r", generation="vllm", vllm_gpu_memory_utilization=0.05
    )
    torch.manual_seed(7)
    state = torch.get_rng_state()
    sampler = make_sampler(
        options, Place(policy, name=folder, end_token_ids=[2], max_length=64)
    )
    same = bool(torch.equal(state, torch.get_rng_state()))
    sampler.sync()
    draws = [Draw(Sampling(8, top_k=50, top_p=0.9), seed, n=2) for seed in (0, 0, 1)]
    drawn = [sampler.sample([[1, 5, 6]] * 3, draw) for draw in draws]
    ids = [[[answer.ids for answer in row] for row in rows] for rows in drawn]
    sampler.end_token_ids = [*range(2, 260)]  # every other token ends an answer, and is its last
    short = [answer for row in sampler.sample([[1, 5, 6]] * 3, draws[0]) for answer in row]
    ends = [[i < 260 for i in answer.ids] for answer in short]
    told = [answer.ended for answer in short]
    print("ASKED" + json.dumps({"ids": ids, "same": same, "ends": ends, "told": told}))
"""


@pytest.fixture(scope="module")
def python():
    """Return the Python of an environment with vLLM."""
    found = os.environ.get("PENCHANT_VLLM_PYTHON")
    if not found:
        pytest.skip("needs PENCHANT_VLLM_PYTHON, the Python of an environment with vLLM")
    return found


@pytest.fixture(scope="module")
def environment(python):
    """Return the variables that both sides run with."""
    own = {"PYTHONPATH": str(SOURCES), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    bin_folder = Path(python).parent
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"  # ninja, among others
    return {**os.environ, **own, "PATH": path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@pytest.fixture(scope="module")
def model(shared, tmp_path_factory):
    """Return a random Llama whose heads are of a size that vLLM has kernels for."""
    return made(shared, tmp_path_factory.mktemp("heads-of-32"), tied=False)


@pytest.fixture(scope="module")
def tied(shared, tmp_path_factory):
    """Return one whose head is its embedding."""
    return made(shared, tmp_path_factory.mktemp("tied"), tied=True)


def made(shared, folder, *, tied):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32},
        max_position_embeddings=512,
        initializer_range=0.25,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def keys(model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Once upon a time {name} "} for name in ("Tim", "Lily", "Ben", "Tim")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        **{"model": str(model), "data": str(prompts), "output": str(tmp_path / "run")},
        **{"max_length": 64, "max_completion_length": 12, "num_generations": 4, "batch_size": 16},
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 8},
        **{"learning_rate": 1e-2, "precision": "fp32", "monitor_prompts": 0, "lora_r": 4},
    }


def train(python, environment, keys):
    """The metrics of a run's batches of answers."""
    command = [python, "-c", RUN, json.dumps(keys)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in (Path(keys["output"]) / "metrics.jsonl").open()]
    batches = {row["iteration"]: row for row in rows if "iteration" in row}
    return list(batches.values()), done.stderr


def require_equal(batches):
    """Every batch after the first is drawn with weights that training has moved."""
    assert len(batches) >= 4
    assert max(row["logprob/sampling_difference_max"] for row in batches) < 1e-4
    assert max(abs(row["sampling/ratio_max"] - 1) for row in batches) < 2e-3
    assert max(row["kl"] for row in batches) > 0.01  # the policy has left its start


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("lora_r", [4, 0])
def test_engine_in_the_process_samples_what_is_scored(
    python, environment, keys, tied, lora_r, temperature
):
    if temperature == 0.5:
        keys |= {"model": str(tied)}
    keys |= {"generation": "vllm", "vllm_gpu_memory_utilization": 0.05}
    keys |= {"lora_r": lora_r, "temperature": temperature}
    require_equal(train(python, environment, keys)[0])


@pytest.mark.slow
def test_half_precision_differs_by_its_rounding_and_is_weighted(python, environment, keys):
    keys |= {"generation": "vllm", "vllm_gpu_memory_utilization": 0.05, "precision": "bf16"}
    batches, _ = train(python, environment, keys)
    assert len(batches) >= 4
    for row in batches:
        assert 1e-5 < row["logprob/sampling_difference"] < 0.05
        assert row["sampling/ratio_max"] != 1 and row["sampling/truncated"] == 0


@pytest.mark.slow
def test_equal_prompts_get_different_answers_and_training_keeps_its_random_numbers(
    python, environment, model
):
    command = [python, "-c", ASK, str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.rpartition("ASKED")[2])
    first, again, other = said["ids"]
    assert len({tuple(ids) for row in first for ids in row}) == 6
    assert first == again and first != other
    assert said["same"]
    assert any(said["told"])
    for ends, told in zip(said["ends"], said["told"], strict=True):
        assert not any(ends[:-1]) and ends[-1] == told and (told or len(ends) == 8)


class Service:
    """vLLM's OpenAI server on a free port, started again as often as it is killed."""

    def __init__(self, python, environment, model, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32"),
            *("--max-model-len", "128", "--gpu-memory-utilization", "0.05", "--enforce-eager"),
            *("--logprobs-mode", "processed_logprobs", "--max-num-seqs", "8"),
            *("--enable-lora", "--max-lora-rank", "8"),
        ]
        own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"}
        self.environment, self.log, self.model = {**environment, **own}, log, str(model)
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self):
        until = time.monotonic() + 300
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except OSError:
                time.sleep(1)
            else:
                return
        raise AssertionError(self.log.read_text()[-4000:])

    def complete(self, **asked):
        """The choices that answer, as the sampler asks for them."""
        data = json.dumps({"model": self.model, "return_token_ids": True, **asked}).encode()
        headers = {"Content-Type": "application/json"}
        question = urllib.request.Request(f"{self.url}/v1/completions", data, headers)
        with urllib.request.urlopen(question, timeout=60) as answer:
            return json.load(answer)["choices"]

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def service(python, environment, model, tmp_path):
    one = Service(python, environment, model, tmp_path / "server.log")
    try:
        one.wait()
        yield one
    finally:
        one.kill()


@contextmanager
def killed_during(service, metrics):
    """Kill the server once a run has taken steps, and start it again."""

    def kill():
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
            time.sleep(0.02)
        service.kill()
        service.start()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield thread
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("lora_r", [4, 0])
def test_server_samples_what_is_scored_and_is_waited_for_once_it_was_killed(
    python, environment, keys, service, lora_r, tmp_path
):
    ends = [*range(2, 260)]  # every other token: an answer's last, and among its ids
    with urllib.request.urlopen(f"{service.url}/server_info?config_format=json") as info:
        assert json.load(info)["vllm_config"]["device_config"]["device"] == "cpu"
    asked = {"prompt": [1, 5, 6], "n": 4, "seed": 0, "ignore_eos": True, "stop_token_ids": ends}
    for choice in service.complete(**asked, max_tokens=32, logprobs=0):
        *others, last = choice["token_ids"]
        assert last in ends and not set(others) & set(ends)
        assert len(choice["logprobs"]["token_logprobs"]) == len(choice["token_ids"])

    keys |= {"generation": "vllm-server", "vllm_url": service.url, "lora_r": lora_r}
    for temperature in (1.0, 0.5):
        output = str(tmp_path / f"at-{temperature}")
        at = {**keys, "temperature": temperature, "output": output}
        require_equal(train(python, environment, at)[0])

    keys |= {"max_steps": 40, "vllm_server_timeout": 300}
    with killed_during(service, Path(keys["output"]) / "metrics.jsonl"):
        batches, said = train(python, environment, keys)
    require_equal(batches)
    assert "the server answers again" in said
