"""What holds for the methods that do not learn log-probabilities of pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.methods.base import LabelInputs, ScoreInputs
from penchant.methods.kto import KTO, KTOOptions
from penchant.methods.reward import REWARD, RewardOptions


def labels(seed):
    generator = torch.Generator().manual_seed(seed)

    def sums():
        return -20 + 5 * torch.randn(6, generator=generator, dtype=torch.float64)

    return LabelInputs(
        completion=sums(),
        ref_completion=sums(),
        completion_len=torch.randint(1, 30, (6,), generator=generator),
        desirable=torch.rand(6, generator=generator) < 0.5,
        kl=torch.rand((), generator=generator, dtype=torch.float64),
    )


def scores(seed):
    generator = torch.Generator().manual_seed(seed)
    return ScoreInputs(*torch.randn(3, 6, generator=generator, dtype=torch.float64).unbind())


def pick(inputs, order):
    """Some examples of a batch; what is one number for the whole batch stays."""
    return replace(
        inputs, **{key: value[order] for key, value in vars(inputs).items() if value.ndim}
    )


ALL = pytest.mark.parametrize(
    ("method", "options", "made"),
    [
        (KTO, KTOOptions(), labels),
        (KTO, KTOOptions(desirable_weight=1.3, undesirable_weight=0.7), labels),
        (KTO, KTOOptions(loss_type="apo_zero_unpaired"), labels),
        (REWARD, RewardOptions(), scores),
        (REWARD, RewardOptions(use_margins=True, center_rewards_coefficient=0.01), scores),
    ],
    ids=["kto", "kto-weighted", "kto-apo", "reward", "reward-margins-centred"],
)


@ALL
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(6)))
def test_permuting_examples_permutes_losses_and_metrics(method, options, made, seed, order):
    inputs = made(seed)
    plain, permuted = method.loss(inputs, options), method.loss(pick(inputs, order), options)
    torch.testing.assert_close(permuted.per_example, plain.per_example[order])
    for name, value in plain.metrics.items():
        torch.testing.assert_close(permuted.metrics[name], value[order], equal_nan=True)


@ALL
def test_an_example_alone_has_the_loss_it_has_in_a_batch(method, options, made):
    inputs = made(0)
    alone = [method.loss(pick(inputs, [i]), options).per_example for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), method.loss(inputs, options).per_example)


@ALL
def test_nothing_is_reduced_and_metrics_carry_no_gradient(method, options, made):
    inputs = made(0)
    next(iter(vars(inputs).values())).requires_grad_()
    found = method.loss(inputs, options)
    assert found.per_example.shape == (6,)
    assert found.per_example.requires_grad
    assert {"reward/chosen", "reward/rejected"} <= set(found.metrics)
    for name, value in found.metrics.items():
        assert value.shape == (6,), name
        assert not value.requires_grad, name


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extreme", [1e4, -1e4, 0.0])
def test_extremes_have_finite_losses_and_gradients(method, options, made, extreme, dtype):
    inputs = made(0)
    first, *others = (key for key, value in vars(inputs).items() if value.is_floating_point())
    moved = torch.full((6,), extreme, dtype=dtype, requires_grad=True)
    still = {key: getattr(inputs, key).to(dtype) for key in others}
    loss = method.loss(replace(inputs, **{first: moved}, **still), options).per_example
    (gradient,) = torch.autograd.grad(loss.sum(), moved)
    assert loss.dtype == dtype
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("method", [KTO, REWARD], ids=lambda method: method.name)
def test_facts_and_options_are_complete_and_sane(method):
    low, high = method.facts.learning_rate_range
    assert low <= method.facts.learning_rate <= high
    assert method.facts.learning_rate_lora >= method.facts.learning_rate
    assert all(field.description for field in method.options.model_fields.values())
