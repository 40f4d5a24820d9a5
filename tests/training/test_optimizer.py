"""Every optimizer: what it trains, what it keeps, and that a checkpoint loses none of it."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import penchant
from penchant.config.keys import RunConfig, load_config
from penchant.core.errors import ConfigError, UserError
from penchant.core.team import ALONE
from penchant.models.lora import add_lora
from penchant.models.memory import held_state
from penchant.models.scoring import Scorer
from penchant.training.checkpoint_files import write_checkpoint
from penchant.training.checkpoint_reading import fill, saved_shapes
from penchant.training.optimizer import (
    make_optimizer,
    make_scheduler,
    optimizer_tensors,
    random_state,
    schedule_state,
    set_random_state,
)
from penchant.training.restoring import load_optimizer, set_rates

OPTIMIZERS = ["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "muon", "sgd"]
STEPS = 4
# Matrices of 4,096 numbers and more have moments in 8 bits.
SIZES = {"hidden_size": 64, "intermediate_size": 128}
LARGER = {"hidden_size": 128, "num_key_value_heads": 4}


def config_of(optim: str, **keys: Any) -> RunConfig:
    own = {"model": "m", "data": "d", "lora_r": 0, "learning_rate": 1e-2, "weight_decay": 0.1}
    return load_config("dpo", {**own, "optim": optim, **keys})


class Training:
    """A model, its optimizer as a step holds it, and its schedule."""

    def __init__(
        self, make_model: Any, config: RunConfig, dtype: str = "float32", **sizes: Any
    ) -> None:
        self.scorer = Scorer(make_model(dtype=dtype, **(SIZES | sizes)), 0)
        self.parameters = dict(self.scorer.named_parameters())
        optimizer = make_optimizer(self.scorer, config)
        self.schedule = make_scheduler(optimizer, config, 2 * STEPS)
        self.wrapped = Accelerator(cpu=True).prepare(optimizer)
        self.optimizer = self.wrapped.optimizer

    def run(self, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for parameter in self.parameters.values():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.grad = noise.to(parameter.dtype)
            self.wrapped.step()
            self.schedule.step()
            self.wrapped.zero_grad()


def resumed(
    make_model: Any, config: RunConfig, folder: Path, dtype: str, **sizes: Any
) -> tuple[Training, Any]:
    """A run that went on, and the one that was never interrupted."""
    first = Training(make_model, config, dtype, **sizes)
    first.run(range(STEPS))
    moments = optimizer_tensors(first.optimizer, first.parameters)
    write_checkpoint(folder, 1, moments, {}, ALONE)
    weights = {name: p.detach().clone() for name, p in first.parameters.items()}
    schedule, randomness = schedule_state(first.schedule), random_state()
    first.run(range(STEPS, 2 * STEPS))
    second = Training(make_model, config, dtype, **sizes)
    for name, parameter in second.parameters.items():
        parameter.data.copy_(weights[name])
    saved = saved_shapes(folder, 1)
    load_optimizer(second.optimizer, second.parameters, saved, partial(fill, folder, 1))
    for name, parameter in second.parameters.items():
        assert torch.equal(parameter, weights[name]), name
    second.schedule.load_state_dict(schedule)
    set_rates(second.wrapped, second.schedule.get_last_lr())
    set_random_state(randomness)
    second.run(range(STEPS, 2 * STEPS))
    return second, first


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit(optim: str, make_model: Any, tmp_path: Path) -> None:
    found, expected = resumed(make_model, config_of(optim), tmp_path, "float32")
    for name, parameter in expected.parameters.items():
        assert torch.equal(found.parameters[name], parameter), name


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_state_takes_what_is_predicted(optim: str, make_model: Any) -> None:
    training = Training(make_model, config_of(optim), **LARGER, tie_word_embeddings=True)
    training.run(range(1))
    tensors = optimizer_tensors(training.optimizer, training.parameters)
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    trained = sum(4 * p.numel() for p in training.parameters.values())
    assert held_state(training.scorer, optim) == pytest.approx(held, abs=0.03 * trained)


def test_muon_trains_hidden_matrices_alone(make_model: Any) -> None:
    training = Training(make_model, config_of("muon"))
    training.run(range(1))
    by = {name: set(training.optimizer.state[p]) for name, p in training.parameters.items()}
    muon = {name for name, keys in by.items() if keys == {"momentum_buffer"}}
    assert muon == {name for name in by if name.endswith("_proj.weight")} and len(muon) == 14
    assert {"exp_avg", "exp_avg_sq"} < by["model.model.embed_tokens.weight"]
    assert {"exp_avg", "exp_avg_sq"} < by["model.lm_head.weight"]


def test_muon_takes_the_adapters_of_hidden_layers_but_not_that_of_the_head(make_model: Any) -> None:
    model = add_lora(make_model(), r=2, alpha=4, dropout=0, target_modules="q_proj,lm_head")
    scorer = Scorer(model, 0)
    optimizer = make_optimizer(scorer, config_of("muon", lora_r=2))
    parts = {
        id(p): "ns_steps" in group for group in optimizer.param_groups for p in group["params"]
    }
    trained = {name: parts[id(p)] for name, p in scorer.named_parameters() if p.requires_grad}
    assert len(trained) == 6
    assert all(muon == ("q_proj" in name) for name, muon in trained.items())


def test_embeddings_have_moments_in_32_bits_beside_the_others_8(make_model: Any) -> None:
    training = Training(make_model, config_of("adamw_8bit"))
    training.run(range(1))
    dtypes = {
        n: training.optimizer.state[p]["state1"].dtype for n, p in training.parameters.items()
    }
    assert dtypes["model.model.embed_tokens.weight"] == torch.float32
    assert dtypes["model.model.layers.0.mlp.up_proj.weight"] == torch.uint8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optim": "sgd", "learning_rate": None}, "set learning_rate"),
        ({"optim": "adafactor", "adam_beta2": 0.9}, "adafactor has no adam_beta2"),
        ({"optim": "muon", "dtype": "bf16"}, "set optim adamw or adamw_8bit"),
        ({"optim": "adamw", "dtype": "bf16"}, "set precision bf16"),
        ({"optim": "adamw", "dtype": "fp16"}, "round to nothing"),
        (
            {"optim": "adamw", "dtype": "bf16", "precision": "bf16", "sync_ref_model": True},
            "sync_ref_model",
        ),
        ({"optim": "adamw_4bit"}, "adamw_8bit"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**keys)


@pytest.mark.parametrize(
    ("keys", "package"),
    [
        ({"optim": "adamw_8bit"}, "bitsandbytes"),
        ({"lora_r": 0, "dtype": "bf16", "precision": "bf16"}, "torchao"),
    ],
)
def test_a_missing_package_is_named_before_a_weight_is_loaded(
    keys: dict[str, Any],
    package: str,
    tiny_keys: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else find(name)
    )
    monkeypatch.setattr("penchant.training.kinds.Pairs.load_model", None)
    with pytest.raises(UserError, match=rf"needs {package}.*penchant\[\w+\]"):
        penchant.train("dpo", output=tmp_path / "run", **{**tiny_keys, **keys})


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit"])
def test_weights_in_bf16_follow_steps_below_their_rounding(
    optim: str, make_model: Any, tmp_path: Path
) -> None:
    """Rounded to the nearest, none of these steps would move a weight."""
    pytest.importorskip("torchao")
    keys = {"dtype": "bf16", "precision": "bf16", "weight_decay": 0.0, "learning_rate": 1e-5}
    config = config_of(optim, lr_scheduler_type="constant", **keys)
    training = Training(make_model, config, "bfloat16", **LARGER)
    norm = training.parameters["model.model.layers.0.mlp.up_proj.weight"]
    norm.data.fill_(1.0)
    for _ in range(40):
        for parameter in training.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        training.wrapped.step()
    # A step of 1e-5 is 1/390 of the distance between two numbers of bf16 below 1.
    moved = 1 - norm.float().mean().item()
    assert moved == pytest.approx(40 * 1e-5, rel=0.2)
    assert {p.dtype for p in training.parameters.values()} == {torch.bfloat16}
    found, expected = resumed(make_model, config, tmp_path, "bfloat16", **LARGER)
    for name, parameter in expected.parameters.items():
        assert torch.equal(found.parameters[name], parameter), name
    held = optimizer_tensors(expected.optimizer, expected.parameters)
    size = sum(t.numel() * t.element_size() for t in held.values())
    assert held_state(expected.scorer, optim) == pytest.approx(size, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"optim": "adamw_8bit", "lora_r": 16},
        {"optim": "muon", "lora_r": 0},
        {"optim": "sgd", "lora_r": 0},
        {"optim": "adamw", "lora_r": 0, "dtype": "bf16", "precision": "bf16"},
    ],
    ids=lambda keys: f"{keys['optim']}-{keys.get('dtype', 'auto')}",
)
def test_a_killed_run_goes_on_to_the_same_weights(
    keys: dict[str, Any], tiny_keys: dict[str, Any], tmp_path: Path, as_killed: Any
) -> None:
    if "dtype" in keys:
        pytest.importorskip("torchao")
    keys = {**tiny_keys, **keys, "save_steps": 2, "save_total_limit": 9, "reference": "auto"}
    penchant.train("dpo", output=tmp_path / "run", **keys)
    cut = as_killed(tmp_path / "run", tmp_path / "cut", after=4)
    penchant.train("dpo", output=cut, resume=True, **keys)
    name = "adapter_model.safetensors" if keys["lora_r"] else "model.safetensors"
    files = [folder / "model" / name for folder in (tmp_path / "run", cut)]
    found, start = load_file(files[0]), load_file(Path(keys["model"]) / "model.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {t.dtype for t in found.values()} == {
        torch.bfloat16 if keys.get("dtype") == "bf16" else torch.float32
    }
    assert keys["lora_r"] or not all(torch.equal(t, start[n].to(t)) for n, t in found.items())
