"""Dynamic sampling: batches full of groups that teach, the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import penchant
from penchant.methods import METHODS
from penchant.methods.experience import Experience
from penchant.methods.grpo import grpo_advantages
from penchant.rl.findings import nothing_left
from penchant.rl.resampling import refill
from penchant.rl.rollout import Judged

from ..online_runs import KEYS as ONLINE
from ..online_runs import PROMPTS

KEYS = {
    **ONLINE,
    "batch_size": 16,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "log_completions": 100,
    "dynamic_sampling": True,
}
REWARD = '''
def reward(completions, n, **_):
    """Of one prompt in three the answers differ; the others are all alike."""
    letters = [sum("a" <= c.lower() <= "z" for c in text) / 6 for text in completions]
    return [value if number % 3 == 0 else 1.0 for value, number in zip(letters, n, strict=True)]
'''


def told_apart(completions, **_):
    return [sum(map(ord, text)) / 1000 for text in completions]


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    file = tmp_path_factory.mktemp("reward") / "mixed.py"
    file.write_text(REWARD)
    return f"{file}:reward"


def train(model, reward, output, method="grpo", **keys):
    return penchant.train(
        method, model=str(model), data=PROMPTS, reward=reward, output=output, **{**KEYS, **keys}
    )


def read(run, file="metrics.jsonl"):
    return [json.loads(line) for line in (Path(run) / file).read_text().splitlines()]


def weights(run):
    return load_file(Path(run) / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_flat_groups_are_replaced_until_the_batch_is_full(method, tiny_model_dir, reward, tmp_path):
    train(tiny_model_dir, reward, tmp_path / "run", method)
    steps = read(tmp_path / "run")
    # Four prompts a batch, two steps each: without replacement most batches would be half empty.
    assert [record["iteration"] for record in steps] == [1, 1, 2, 2, 3, 3]
    assert all(record["resampling/batches"] > 1 for record in steps)
    assert all(record["resampling/thrown_away"] > 0.4 for record in steps)
    assert all(0.4 < record["reward/zero_variance"] < 1 for record in steps)
    sampled = read(tmp_path / "run", "rollouts.jsonl")
    first = [record for record in sampled if record["iteration"] == 1]
    assert len(first) == steps[0]["rollouts"] > 2 * KEYS["batch_size"]
    rewards = [record["reward"] for record in first]
    # What was thrown away counts where the answers as a whole are told of.
    assert steps[0]["reward/mean"] > 0.6 and rewards.count(rewards[0]) < len(rewards)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sampling"]["episodes"] == sum(steps[i]["rollouts"] for i in (0, 2, 4))


def test_a_batch_that_is_full_at_once_is_the_one_without(tiny_model_dir, tmp_path):
    plain, dynamic = tmp_path / "plain", tmp_path / "dynamic"
    train(tiny_model_dir, told_apart, plain, dynamic_sampling=False, max_steps=2)
    train(tiny_model_dir, told_apart, dynamic, max_steps=2)
    assert read(dynamic)[0]["resampling/batches"] == 1
    assert all(torch.equal(value, weights(dynamic)[name]) for name, value in weights(plain).items())


def test_what_cannot_be_filled_is_trained_on_as_it_is(tiny_model_dir, reward, tmp_path):
    train(tiny_model_dir, reward, tmp_path / "run", dynamic_sampling_max_gen_batches=2, max_steps=4)
    steps = read(tmp_path / "run")
    assert all(record["resampling/batches"] == 2 for record in steps)
    assert steps[-1]["iteration"] > 2  # at most a step of each batch


def test_answers_that_are_cut_off_are_not_called_equal():
    """Two groups, of which one has answers of different rewards; all are cut."""
    zeros = torch.zeros(4)
    experience = Experience(
        lengths=torch.ones(4, dtype=torch.long), group=torch.tensor([0, 0, 1, 1]), logprobs=zeros,
        scores=torch.tensor([1.0, 3.0, 2.0, 2.0]), ended=torch.zeros(4, dtype=torch.bool),
    )  # fmt: skip
    options = METHODS["grpo"].options(
        reward="r", beta=0.0, dynamic_sampling=True, mask_truncated_completions=True
    )
    judged = Judged([None] * 4, [""] * 4, None, experience, {})
    refilled = refill(
        lambda count, first: judged, lambda e: grpo_advantages(e, 0.0, options), 2, max_batches=1
    )
    assert not refilled.chosen.answers
    assert refilled.judged.metrics["reward/zero_variance"] == 0.5
    assert "max_completion_length cut the answers off" in nothing_left(10, 0, 0.5).what
    assert "the rewards within each group were all the same" in nothing_left(10, 0, 1.0).what


@pytest.mark.parametrize("killed", [1, 2])
def test_a_killed_run_ends_in_the_same_weights(killed, tiny_model_dir, reward, tmp_path, as_killed):
    train(tiny_model_dir, reward, tmp_path / "whole", save_total_limit=9)
    halved = as_killed(tmp_path / "whole", tmp_path / "halved", after=killed)
    train(tiny_model_dir, reward, halved, save_total_limit=9, resume=True)
    one, other = weights(tmp_path / "whole"), weights(halved)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_keys_that_say_nothing_together_are_refused():
    grpo = METHODS["grpo"].options
    with pytest.raises(ValidationError, match="replaces the groups that skip_zero_variance"):
        grpo(reward="r", dynamic_sampling=True, skip_zero_variance=False)
    with pytest.raises(ValidationError, match="is read with dynamic_sampling"):
        grpo(reward="r", dynamic_sampling_max_gen_batches=3)
