"""Generation engines: refusals, and vLLM through a double of its interface."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from penchant.core.errors import ConfigError
from penchant.models.lora import add_lora
from penchant.models.policy import PolicyScorer
from penchant.rl.sampling.engines import make_sampler
from penchant.rl.sampling.sampler import CachedSampler, Sampling
from penchant.rl.sampling.vllm import VllmSampler


@pytest.fixture
def policy(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return PolicyScorer(
        add_lora(model, r=2, alpha=4, dropout=0, target_modules="all-linear"), pad_token_id=0
    )


class Engine:
    """Stands for `vllm.LLM`: answers with the prompt's length, remembers what it was given."""

    def __init__(self):
        self.calls, self.resets, self.loaded = [], 0, []
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def load_weights(self, weights):
        self.loaded.append(dict(weights))

    def reset_prefix_cache(self):
        self.resets += 1

    def generate(self, prompts, parameters, lora_request=None, use_tqdm=True):
        self.calls.append((prompts, parameters, lora_request))
        outputs = []
        for prompt in prompts:
            length = len(prompt["prompt_token_ids"])
            ids = [length] * 3 + [2]
            logprobs = [{token: SimpleNamespace(logprob=-0.5), 99: None} for token in ids]
            one = SimpleNamespace(token_ids=ids, logprobs=logprobs)
            outputs.append(SimpleNamespace(outputs=[one] * parameters["n"]))
        return outputs


def adapter_request(name, number, path):
    return SimpleNamespace(name=name, number=number, path=path)


def test_vllm_draws_what_it_is_asked_for(policy):
    sampler = VllmSampler(Engine(), policy, [2], dict, adapter_request)
    sampler.sync()
    found = sampler.sample([[5, 6, 7], [8]], n=2, sampling=Sampling(9, 0.7, 5, 0.9), seed=3)
    ((prompts, parameters, adapter),) = sampler.engine.calls
    assert prompts == [{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [8]}]
    wanted = {"n": 2, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_tokens": 9, "seed": 3}
    assert {key: parameters[key] for key in wanted} == wanted
    assert parameters["stop_token_ids"] == [2]
    assert [[c.ids for c in row] for row in found] == [[[3, 3, 3, 2]] * 2, [[1, 1, 1, 2]] * 2]
    assert found[0][0].logprobs == [-0.5] * 4
    assert found[0][0].ended
    assert adapter.number == 1


def test_vllm_gets_the_adapter_anew_after_each_update(policy):
    sampler = VllmSampler(Engine(), policy, [2], dict, adapter_request)
    held = []
    for value in (0.25, 0.5):
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(value)
        sampler.sync()
        sampler.sample([[5]], n=1, sampling=Sampling(2), seed=0)
        request = sampler.engine.calls[-1][2]
        saved = load_file(Path(request.path) / "adapter_model.safetensors")
        assert {float(w.max()) for n, w in saved.items() if "lora_B" in n} == {value}
        held.append((request.number, request.path))
    assert len(set(held)) == 2  # vLLM keeps adapters by their number
    assert sampler.engine.resets == 2


def test_vllm_gets_all_weights_where_all_are_trained(tiny_model_dir):
    scorer = PolicyScorer(AutoModelForCausalLM.from_pretrained(tiny_model_dir), 0)
    sampler = VllmSampler(Engine(), scorer, [2], dict)
    sampler.sync()
    (loaded,) = sampler.engine.loaded
    for name, parameter in scorer.causal_model.named_parameters():
        assert torch.equal(loaded[name], parameter)


def test_engines_that_cannot_run_here_are_refused(policy):
    make = {"name": "m", "end_token_ids": [2], "batch_size": 4}
    assert isinstance(make_sampler("auto", policy, **make), CachedSampler)
    for kind in ("continuous", "vllm"):
        with pytest.raises(ConfigError, match=f"generation: {kind} needs"):
            make_sampler(kind, policy, **make)
