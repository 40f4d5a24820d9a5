"""What holds for every method on log-probabilities of pairs, and what every method must bring."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import penchant.methods
from penchant.config.keys import RunConfig
from penchant.methods import METHODS, Method, PairInputs

ROOT = Path(__file__).resolve().parents[2]
METRICS = {
    "reward/chosen",
    "reward/rejected",
    "reward/margin",
    "reward/accuracy",
    "logprob/chosen",
    "logprob/rejected",
}
PAIRWISE = {
    name: method
    for name, method in METHODS.items()
    if method.data == "pairs" and method.model == "language"
}
NUMBERS = {"label_smoothing": 0.2, "rpo_alpha": 0.5, "f_alpha_divergence_coef": -0.5}


def changes(method):
    """The defaults, then every choice and some of the numbers, changed one at a time."""
    yield {}
    for key, field in method.options.model_fields.items():
        if get_origin(field.annotation) is Literal:
            others = set(get_args(field.annotation)) - {field.default}
            yield from ({key: value} for value in sorted(others))
        elif field.annotation is bool:
            yield {key: not field.default}
        elif key == "f_alpha_divergence_coef":
            yield {key: NUMBERS[key], "f_divergence_type": "alpha_divergence"}
        elif key in NUMBERS:
            yield {key: NUMBERS[key]}


def variants():
    """Every pairwise method with each of its changes."""
    for name, method in PAIRWISE.items():
        for change in changes(method):
            words = [f"{key}={value}" for key, value in change.items()]
            yield pytest.param(method, method.options(**change), id="-".join([name, *words]))


ALL = pytest.mark.parametrize(("method", "options"), list(variants()))


def made(seed, pairs=6, spread=5.0):
    """Everything that a method may need, as of one global batch."""
    generator = torch.Generator().manual_seed(seed)

    def sums():
        return -20 + spread * torch.randn(pairs, generator=generator, dtype=torch.float64)

    def lengths():
        return torch.randint(1, 30, (pairs,), generator=generator)

    def weights():
        return torch.rand(pairs, generator=generator, dtype=torch.float64)

    return PairInputs(
        *(sums(), sums(), sums(), sums(), lengths(), lengths()),
        prompt=sums(),
        prompt_len=lengths(),
        chosen_weight=weights(),
        rejected_weight=weights(),
        mean_chosen_len=12.5,
        mean_prompt_len=9.5,
    )


def pick(inputs, order):
    """Some pairs; what is said of the global batch stays."""
    tensors = {k: v for k, v in vars(inputs).items() if isinstance(v, torch.Tensor)}
    return replace(inputs, **{name: value[order] for name, value in tensors.items()})


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
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_losses_and_gradients_do_not_depend_on_micro_batches(method, options, size):
    inputs = made(0)
    leaves = (inputs.chosen.requires_grad_(), inputs.rejected.requires_grad_())
    whole = method.loss(inputs, options).per_example
    expected = torch.autograd.grad(whole.sum(), leaves)

    batch = replace(made(0), batch=None)
    parts = [
        method.loss(replace(pick(inputs, indices), batch=batch), options).per_example
        for indices in torch.arange(6).split(size)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    found = torch.autograd.grad(torch.cat(parts).sum(), leaves)
    torch.testing.assert_close(found, expected)


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
    """Log-probs stay negative: it is the policy's or the reference's that is extreme."""
    moved = torch.tensor([-5.0 + min(ratio, 0)], dtype=dtype, requires_grad=True)
    reference = torch.tensor([-5.0 - max(ratio, 0)], dtype=dtype)
    still = torch.tensor([-5.0], dtype=dtype)
    rest = {
        name: torch.full((1,), 3.0, dtype=dtype)
        for name, value in vars(made(0, pairs=1)).items()
        if isinstance(value, torch.Tensor)
    }
    for own, other in (("chosen", "rejected"), ("rejected", "chosen")):
        policy = {own: moved, other: still, f"ref_{own}": reference, f"ref_{other}": still}
        loss = method.loss(PairInputs(**{**rest, **policy}), options).per_example
        (gradient,) = torch.autograd.grad(loss.sum(), moved)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


@ALL
def test_widening_a_small_right_margin_lowers_the_loss(method, options):
    """From two nats on either side, and whatever becomes of the two sides by themselves."""
    start = made(0, spread=0.0)
    chosen = (start.chosen + 2).requires_grad_()
    rejected = (start.rejected - 2).requires_grad_()
    four = torch.full((6,), 4)
    inputs = replace(start, chosen=chosen, rejected=rejected, chosen_len=four, rejected_len=four)
    up, down = torch.autograd.grad(
        method.loss(inputs, options).per_example.sum(), (chosen, rejected)
    )
    assert (up - down < 0).all()


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


def test_every_method_that_a_module_defines_has_an_entry():
    modules = pkgutil.iter_modules(penchant.methods.__path__, "penchant.methods.")
    defined = [
        value
        for module in modules
        for value in vars(import_module(module.name)).values()
        if isinstance(value, Method)
    ]
    assert {method.name: method for method in defined} == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_facts_and_options_are_complete_and_sane(name):
    method = METHODS[name]
    low, high = method.facts.learning_rate_range
    assert low <= method.facts.learning_rate <= high
    assert method.facts.learning_rate_lora >= method.facts.learning_rate
    assert method.facts.paper.startswith("https://arxiv.org/abs/")
    assert bool(method.facts.beta) == ("beta" in method.options.model_fields)
    for key, field in method.options.model_fields.items():
        assert field.description, f"{key} needs a description: it is a command-line option"
        assert key not in RunConfig.model_fields, f"{key} is already a key of every run"


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_method_that_needs_a_reference_does_not_run_without_one(name):
    inputs, method = made(0), METHODS[name]
    without = replace(inputs, ref_chosen=None, ref_rejected=None)
    if method.needs_reference:
        with pytest.raises(AssertionError):
            method.loss(without, method.options())
    else:
        torch.testing.assert_close(
            method.loss(without, method.options()).per_example,
            method.loss(inputs, method.options()).per_example,
        )
