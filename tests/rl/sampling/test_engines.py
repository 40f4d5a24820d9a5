"""Generation engines that cannot run are refused."""

from __future__ import annotations

import importlib.util

import pytest
from transformers import AutoModelForCausalLM

from penchant.core.errors import ConfigError
from penchant.methods import METHODS
from penchant.models.lora import add_lora
from penchant.models.policy import PolicyScorer
from penchant.rl.sampling.engines import Place, make_sampler, require_engine
from penchant.rl.sampling.sampler import CachedSampler


@pytest.fixture
def policy(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return PolicyScorer(
        add_lora(model, r=2, alpha=4, dropout=0, target_modules="all-linear"), pad_token_id=0
    )


def test_engines_that_cannot_run_here_are_refused(policy):
    place = Place(policy, name="m", end_token_ids=[2], max_length=64)
    options = METHODS["grpo"].options
    assert isinstance(make_sampler(options(reward="r"), place), CachedSampler)
    with pytest.raises(ConfigError, match="generation: continuous needs"):
        make_sampler(options(reward="r", generation="continuous"), place)
    asleep = options(reward="r", generation="vllm", vllm_enable_sleep_mode=True)
    with pytest.raises(ConfigError, match="does not sleep on a CPU"):
        make_sampler(asleep, place)
    here = importlib.util.find_spec("vllm") is not None
    message = "several share a server" if here else "needs vLLM: pip install vllm"
    with pytest.raises(ConfigError, match=f"generation: vllm .*{message}"):
        require_engine(options(reward="r", generation="vllm"), 64, num_processes=2)
