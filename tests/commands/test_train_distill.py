"""Runs that distill: they approach the teacher, resume exactly, and refuse who cannot teach."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import penchant
from penchant.core.errors import UserError
from penchant.models.load import load_tokenizer
from penchant.training.teachers import TeacherAdapter

from ..online_runs import KEYS as ONLINE
from ..online_runs import PROMPTS

KEYS = {
    **ONLINE,
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "lr_scheduler_type": "constant",
}


def train(model, teacher, output, **keys):
    return penchant.train(
        "distill", model=str(model), teacher_model=str(teacher), output=output,
        **{"data": PROMPTS, **KEYS, **keys},
    )  # fmt: skip


def read(run, file="metrics.jsonl"):
    return [json.loads(line) for line in (Path(run) / file).read_text().splitlines()]


def moved(folder, copy, amount):
    """A copy of a saved model with another head, whose tokens a policy can learn one by one."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    head = weights["lm_head.weight"]
    head += amount * torch.randn(head.shape, generator=generator)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def teacher(tiny_model_dir, tmp_path_factory):
    return moved(tiny_model_dir, tmp_path_factory.mktemp("teacher") / "model", 0.2)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_policy_approaches_its_teacher(beta, tiny_model_dir, teacher, tmp_path):
    keys = {"max_steps": 30, "lora_r": 0, "save_steps": 50, "train_fraction": 0.7}
    result = train(tiny_model_dir, teacher, tmp_path / "run", beta=beta, eval_on_start=True, **keys)
    assert result.after.loss < 0.7 * result.before.loss
    steps = [record for record in read(tmp_path / "run") if "grad_norm" in record]
    assert steps[-1]["kl/teacher"] < steps[0]["kl/teacher"]
    assert steps[0]["loss"] == pytest.approx(steps[0]["divergence"])
    assert steps[0]["seconds/scoring"] < 0.1 * steps[0]["seconds/generation"]
    assert "reward/mean" not in steps[0]
    assert all("reward" not in record for record in read(tmp_path / "run", "rollouts.jsonl"))


def test_held_out_prompts_are_answered_where_nothing_judges(tiny_model_dir, teacher, tmp_path):
    keys = {"monitor_prompts": 2, "monitor_steps": 1, "monitor_length": 4, "max_steps": 1}
    train(tiny_model_dir, teacher, tmp_path / "run", **keys)
    found = [record for record in read(tmp_path / "run") if "monitor/length" in record]
    assert [record["step"] for record in found] == [0, 1]
    assert not any("reward" in name for record in found for name in record)


def test_a_killed_run_ends_in_the_same_weights(tiny_model_dir, teacher, tmp_path, as_killed):
    train(tiny_model_dir, teacher, tmp_path / "whole", num_iterations=2, reward="length:3")
    steps = read(tmp_path / "whole")
    assert "reward/mean" in steps[0]  # for the metrics alone
    halved = as_killed(tmp_path / "whole", tmp_path / "halved", after=1)
    train(tiny_model_dir, teacher, halved, num_iterations=2, reward="length:3", resume=True)
    one, other = (
        load_file(run / "model" / "adapter_model.safetensors")
        for run in (tmp_path / "whole", halved)
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_teacher_that_is_an_adapter_of_the_base_needs_no_second_one(
    tiny_model_dir, training_file, tmp_path, monkeypatch
):
    """And says the same as the base with that adapter merged into it."""
    taught = tmp_path / "taught"
    penchant.train(
        "dpo", model=str(tiny_model_dir), data=str(training_file), output=taught, max_steps=3,
        learning_rate=0.1, lora_r=2, merge=True, max_length=64, monitor_prompts=0,
    )  # fmt: skip
    made = []
    loaded = TeacherAdapter.__init__

    def remembered(self, *args):
        loaded(self, *args)
        made.append(self)

    monkeypatch.setattr(TeacherAdapter, "__init__", remembered)
    train(tiny_model_dir, taught, tmp_path / "shared")
    assert len(made) == 1
    train(tiny_model_dir, taught / "merged", tmp_path / "copied")
    assert len(made) == 1
    for one, other in zip(*(read(tmp_path / n) for n in ("shared", "copied")), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
    saved = load_file(tmp_path / "shared" / "model" / "adapter_model.safetensors")
    assert all("teacher" not in name for name in saved)
    assert all(min(value.shape) == 4 for value in saved.values())


def test_a_teacher_of_another_tokenizer_is_refused_before_a_weight_is_loaded(
    tiny_model_dir, teacher, tmp_path, byte_level_tokenizer
):
    other = tmp_path / "other"
    shutil.copytree(teacher, other, ignore=lambda *_: ["model.safetensors"])
    tokenizer = load_tokenizer(str(other))
    file = other / "tokenizer.json"
    text = json.loads(file.read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(text))
    assert tokenizer.get_vocab() != load_tokenizer(str(other)).get_vocab()
    with pytest.raises(UserError, match=rf"{other} has another tokenizer .* 2 of .* such as 'a'"):
        train(tiny_model_dir, other, tmp_path / "run")
    with pytest.raises(UserError, match="no such model"):
        train(tiny_model_dir, tmp_path / "absent", tmp_path / "run")
    with pytest.raises(UserError, match="teacher_model"):
        penchant.train("distill", model=str(tiny_model_dir), data=PROMPTS, output=tmp_path / "run")
