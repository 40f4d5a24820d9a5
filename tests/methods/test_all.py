"""What holds for every method, and what every method must bring."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import penchant.methods
from penchant.config import RunConfig
from penchant.methods import METHODS, PairInputs

ROOT = Path(__file__).resolve().parents[2]
METRICS = {
    "reward/chosen",
    "reward/rejected",
    "reward/margin",
    "reward/accuracy",
    "logprob/chosen",
    "logprob/rejected",
}


def variants():
    """Every method with every combination of its choices, and some of its numbers."""
    for name, method in METHODS.items():
        fields = method.options.model_fields
        choices = {
            key: get_args(field.annotation)
            for key, field in fields.items()
            if get_origin(field.annotation) is Literal
        }
        if "label_smoothing" in fields:
            choices["label_smoothing"] = (0.0, 0.2)
        for values in itertools.product(*choices.values()):
            options = method.options(**dict(zip(choices, values, strict=True)))
            yield pytest.param(method, options, id="-".join([name, *map(str, values)]))


ALL = pytest.mark.parametrize(("method", "options"), list(variants()))


def made(seed, pairs=6, spread=5.0):
    generator = torch.Generator().manual_seed(seed)

    def sums():
        return -20 + spread * torch.randn(pairs, generator=generator, dtype=torch.float64)

    def lengths():
        return torch.randint(1, 30, (pairs,), generator=generator)

    return PairInputs(sums(), sums(), sums(), sums(), lengths(), lengths())


def pick(inputs, order):
    return PairInputs(*(value[order] for value in vars(inputs).values()))


@ALL
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(6)))
def test_permuting_pairs_permutes_losses_and_metrics(method, options, seed, order):
    inputs = made(seed)
    plain, permuted = method.loss(inputs, options), method.loss(pick(inputs, order), options)
    torch.testing.assert_close(permuted.per_example, plain.per_example[order])
    for name, value in plain.metrics.items():
        torch.testing.assert_close(permuted.metrics[name], value[order])


@ALL
def test_a_pair_alone_has_the_loss_it_has_in_a_batch(method, options):
    inputs = made(0)
    alone = [method.loss(pick(inputs, [i]), options).per_example for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), method.loss(inputs, options).per_example)


@ALL
def test_nothing_is_reduced_and_metrics_carry_no_gradient(method, options):
    inputs = made(0)
    inputs.chosen.requires_grad_()
    found = method.loss(inputs, options)
    assert found.per_example.shape == (6,)
    assert found.per_example.requires_grad
    assert set(found.metrics) >= METRICS
    for name, value in found.metrics.items():
        assert value.shape == (6,), name
        assert not value.requires_grad, name


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [1e4, -1e4, 0.0])
def test_extreme_log_ratios_have_finite_losses_and_gradients(method, options, ratio, dtype):
    policy = [torch.tensor([ratio - 5.0], dtype=dtype, requires_grad=True) for _ in range(2)]
    reference = [torch.tensor([-5.0], dtype=dtype) for _ in range(2)]
    length = torch.tensor([3])
    for chosen, rejected in ((policy[0], reference[1]), (reference[0], policy[1])):
        inputs = PairInputs(chosen, rejected, *reference, length, length)
        loss = method.loss(inputs, options).per_example
        moved = next(p for p in (chosen, rejected) if p.requires_grad)
        (gradient,) = torch.autograd.grad(loss.sum(), moved)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


@ALL
def test_raising_chosen_and_lowering_rejected_lowers_the_loss_of_an_untrained_policy(
    method, options
):
    start = made(0, spread=0.0)
    start.chosen.requires_grad_()
    start.rejected.requires_grad_()
    loss = method.loss(start, options).per_example
    chosen, rejected = torch.autograd.grad(loss.sum(), (start.chosen, start.rejected))
    assert (chosen < 0).all()
    assert (rejected > 0).all()


@ALL
def test_the_margin_is_the_difference_of_the_rewards_and_accuracy_its_sign(method, options):
    metrics = method.loss(made(1), options).metrics
    margin = metrics["reward/chosen"] - metrics["reward/rejected"]
    torch.testing.assert_close(metrics["reward/margin"], margin)
    torch.testing.assert_close(metrics["reward/accuracy"], (margin > 0).double())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_module_a_test_and_a_page(name):
    assert METHODS[name].name == name
    assert hasattr(penchant.methods, name), f"src/penchant/methods/{name}.py"
    assert (ROOT / "tests" / "methods" / f"test_{name}.py").is_file()
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()


def test_every_method_module_has_an_entry():
    folder = ROOT / "src" / "penchant" / "methods"
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__", "base"}
    assert modules == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_facts_and_options_are_complete_and_sane(name):
    method = METHODS[name]
    low, high = method.facts.learning_rate_range
    assert low <= method.facts.learning_rate <= high
    assert method.facts.learning_rate_lora >= method.facts.learning_rate
    assert method.facts.paper.startswith("https://arxiv.org/abs/")
    for key, field in method.options.model_fields.items():
        assert field.description, f"{key} needs a description: it is a command-line option"
        assert key not in RunConfig.model_fields, f"{key} is already a key of every run"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_needs_a_reference_does_not_run_without_one(name):
    inputs = made(0)
    without = PairInputs(
        inputs.chosen, inputs.rejected, None, None, inputs.chosen_len, inputs.rejected_len
    )
    method = METHODS[name]
    if method.needs_reference:
        with pytest.raises(AssertionError):
            method.loss(without, method.options())
    else:
        torch.testing.assert_close(
            method.loss(without, method.options()).per_example,
            method.loss(inputs, method.options()).per_example,
        )
