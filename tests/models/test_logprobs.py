"""The chunked head against full logits: values, gradients, and the memory it must not take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.models import vocabulary as walk
from penchant.models.comparison import compare_heads
from penchant.models.logprobs import completion_logprobs
from penchant.models.vocabulary import LogitTransform

WIDTH = 1024  # the narrowest chunk
AS_IS = LogitTransform()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks of the vocabulary and several chunks of rows even at these sizes."""
    monkeypatch.setattr("penchant.models.vocabulary.CHUNK_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr("penchant.models.vocabulary.ROWS_AT_ONCE", 5)


def naive_logits(hidden, weight, bias=None, transform=AS_IS):
    logits = hidden @ weight.t()
    if bias is not None:
        logits = logits + bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits / transform.temperature


def naive(hidden, weight, targets, bias=None, transform=AS_IS):
    rows = naive_logits(hidden, weight, bias, transform).log_softmax(-1)
    return rows.gather(1, targets.unsqueeze(1)).squeeze(1)


def made(rows, width, vocabulary, *, seed=0, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = spread * torch.randn(rows, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    bias = torch.randn(vocabulary, generator=generator, dtype=dtype)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden, weight, bias, targets


TRANSFORMS = st.builds(
    LogitTransform,
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    temperature=st.sampled_from([1.0, 0.7]),
)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    width=st.integers(1, 9),
    vocabulary=st.sampled_from([2, 7, WIDTH, WIDTH + 1, 2 * WIDTH, 2500]),
    seed=st.integers(0, 99),
    with_bias=st.booleans(),
    transform=TRANSFORMS,
    trainable=st.booleans(),
)
def test_values_and_gradients_equal_those_of_full_logits(
    rows, width, vocabulary, seed, with_bias, transform, trainable
):
    hidden, weight, bias, targets = made(rows, width, vocabulary, seed=seed)
    bias = bias if with_bias else None
    leaves = [hidden, *([weight] if trainable else [])]
    leaves += [bias] if trainable and bias is not None else []
    for leaf in leaves:
        leaf.requires_grad_()
    found = completion_logprobs(hidden, weight, targets, bias=bias, transform=transform)
    expected = naive(hidden, weight, targets, bias, transform)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    factors = torch.linspace(-1, 2, rows, dtype=found.dtype)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, factors),
        torch.autograd.grad(expected, leaves, factors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("target", [0, WIDTH - 1, WIDTH, 2 * WIDTH - 1, 2 * WIDTH, 2499])
def test_targets_at_the_edges_of_chunks_are_found(target, trainable):
    hidden, weight, _, _ = made(1, 4, 2500)
    weight.requires_grad_(trainable)
    targets = torch.tensor([target])
    found = completion_logprobs(hidden.requires_grad_(), weight, targets)
    torch.testing.assert_close(found, naive(hidden, weight, targets))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("spread", [1e2, 1e4])
def test_extreme_logits_neither_overflow_nor_lose_the_likely_token(spread, trainable):
    hidden, weight, _, _ = made(6, 8, 2500, dtype=torch.float32, spread=spread)
    likeliest = (hidden @ weight.t()).argmax(1)
    for targets in (likeliest, (likeliest + 1) % 2500):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trainable)]
        found = completion_logprobs(*leaves, targets)
        expected = naive(hidden.double(), weight.double(), targets)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)
        found.sum().backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves if leaf.requires_grad)


def test_a_head_alone_is_trained_where_the_model_below_is_frozen():
    hidden, weight, bias, targets = made(7, 4, 1500)
    weight.requires_grad_()
    found = completion_logprobs(hidden, weight, targets, bias=bias)
    (ours,) = torch.autograd.grad(found.sum(), weight)
    (theirs,) = torch.autograd.grad(naive(hidden, weight, targets, bias).sum(), weight)
    torch.testing.assert_close(ours, theirs)


def test_half_precision_heads_are_summed_in_single_precision():
    hidden, weight, _, targets = made(16, 8, 2500, dtype=torch.bfloat16)
    found = completion_logprobs(hidden, weight, targets)
    assert found.dtype == torch.float32
    expected = naive(hidden.float(), weight.float(), targets)
    # A bf16 product of size 8 is off by up to 2^-8 of its size; a bf16 sum over 2500 is useless.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 12),
    vocabulary=st.sampled_from([2, WIDTH, WIDTH + 1, 2500]),
    seed=st.integers(0, 99),
    with_bias=st.booleans(),
    transform=TRANSFORMS,
    trainable=st.booleans(),
    also=st.sampled_from(["collisions", "entropy"]),
)
def test_collisions_and_entropies_are_of_the_whole_distribution_without_gradient(
    rows, vocabulary, seed, with_bias, transform, trainable, also
):
    hidden, weight, bias, targets = made(rows, 6, vocabulary, seed=seed)
    bias = bias if with_bias else None
    leaves = [hidden.requires_grad_(), *([weight.requires_grad_()] if trainable else [])]
    both = completion_logprobs(hidden, weight, targets, bias=bias, transform=transform, also=also)
    assert both.shape == (2, rows)
    p = naive_logits(hidden, weight, bias, transform).softmax(-1)
    expected = p.square().sum(1).log() if also == "collisions" else torch.special.entr(p).sum(1)
    torch.testing.assert_close(both[1], expected, rtol=1e-9, atol=1e-9)
    alone = completion_logprobs(hidden, weight, targets, bias=bias, transform=transform)
    assert torch.equal(both[0], alone)
    factors = torch.linspace(-1, 2, rows, dtype=alone.dtype)
    weighted = (both * factors).sum()  # the second row is there, and changes no gradient
    for ours, theirs in zip(
        torch.autograd.grad(weighted, leaves),
        torch.autograd.grad(alone, leaves, factors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_uniform_head_collides_once_in_a_vocabulary():
    hidden, weight, _, targets = made(3, 4, 2500)
    both = completion_logprobs(0 * hidden, weight, targets, also="collisions")
    torch.testing.assert_close(both[1], -torch.full((3,), 2500.0).double().log())


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 12),
    vocabulary=st.sampled_from([7, WIDTH, WIDTH + 1, 2500]),
    seed=st.integers(0, 99),
    with_bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.0625]),
)
def test_exponentials_kept_for_backward_give_the_gradients_of_recomputed_ones(
    rows, vocabulary, seed, with_bias, scale
):
    def found(kept_elements):
        hidden, weight, bias, targets = made(rows, 5, vocabulary, seed=seed)
        leaves = [hidden.requires_grad_(), weight.requires_grad_()]
        leaves += [bias.requires_grad_()] if with_bias else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(walk, "KEPT_ELEMENTS", kept_elements)
            values = completion_logprobs(
                hidden,
                weight,
                targets,
                bias=bias if with_bias else None,
                transform=LogitTransform(scale),
            )
            assert (values.grad_fn.kept is None) == (kept_elements == 0)
            factors = torch.linspace(-1, 2, rows, dtype=values.dtype)
            return [values.detach(), *torch.autograd.grad(values, leaves, factors)]

    for kept, recomputed in zip(found(1 << 25), found(0), strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("elements", [7 * 2500 - 1, 7 * 2500])
def test_no_more_is_kept_for_backward_than_the_buffer_holds(elements, monkeypatch):
    monkeypatch.setattr(walk, "KEPT_ELEMENTS", elements)
    hidden, weight, _, targets = made(7, 5, 2500)
    found = completion_logprobs(hidden, weight.requires_grad_(), targets)
    kept = found.grad_fn.kept
    assert (kept is not None) == (elements == 7 * 2500)
    assert sum(exponentials.numel() for exponentials, _ in kept or []) in (0, elements)


@pytest.mark.parametrize("trainable", [False, True])
def test_no_tensor_of_tokens_by_vocabulary_exists_forward_or_backward(
    trainable, monkeypatch, largest_tensor
):
    monkeypatch.setattr("penchant.models.vocabulary.ROWS_AT_ONCE", 16)
    rows, width, vocabulary = 200, 4, 8192
    hidden, weight, bias, targets = made(rows, width, vocabulary, dtype=torch.float32)
    weight.requires_grad_(trainable)
    hidden.requires_grad_()
    with largest_tensor() as largest:
        found = completion_logprobs(
            hidden, weight, targets, bias=bias, transform=LogitTransform(2.0, 30.0)
        )
        found.sum().backward()
    # The weight and its gradient are [vocabulary, width]; a chunk of logits is 16 x 1024.
    assert largest.numel <= vocabulary * width == 32768 < rows * vocabulary


def test_comparing_heads_makes_no_tensor_of_tokens_by_vocabulary(monkeypatch, largest_tensor):
    monkeypatch.setattr("penchant.models.vocabulary.ROWS_AT_ONCE", 16)
    hidden, weight, bias, targets = made(200, 4, 8192, dtype=torch.float32)
    with largest_tensor() as largest:
        compare_heads((hidden, weight, bias), (hidden + 1, weight, bias), targets)
    assert largest.numel <= 8192 * 4


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.5, 3.0)])
@pytest.mark.parametrize("vocabulary", [7, 2500])
def test_compared_heads_give_the_exact_kl_entropy_and_both_logprobs(vocabulary, transform):
    hidden, weight, bias, targets = made(12, 6, vocabulary)
    ref_hidden, ref_weight, _, _ = made(12, 6, vocabulary, seed=1)
    both = compare_heads(
        (hidden, weight, bias), (ref_hidden, ref_weight, None), targets, transform=transform
    )
    log_p = naive_logits(hidden, weight, bias, transform).log_softmax(-1)
    log_q = naive_logits(ref_hidden, ref_weight, None, transform).log_softmax(-1)
    torch.testing.assert_close(both.kl, (log_p.exp() * (log_p - log_q)).sum(1))
    torch.testing.assert_close(both.entropy, -(log_p.exp() * log_p).sum(1))
    torch.testing.assert_close(both.logprobs, naive(hidden, weight, targets, bias, transform))
    torch.testing.assert_close(
        both.ref_logprobs, naive(ref_hidden, ref_weight, targets, None, transform)
    )


def test_heads_of_different_width_can_be_compared_as_a_lora_head_with_its_base():
    hidden, weight, _, targets = made(12, 6, 2500)
    both = compare_heads((hidden, weight, None), (hidden[:, :4], weight[:, :4], None), targets)
    torch.testing.assert_close(both.ref_logprobs, naive(hidden[:, :4], weight[:, :4], targets))


def test_kl_of_a_model_from_itself_is_zero_and_of_a_uniform_one_the_entropy_is_log_v():
    hidden, weight, _, targets = made(3, 4, 2500)
    both = compare_heads((0 * hidden, weight, None), (0 * hidden, weight, None), targets)
    assert both.kl.abs().max() < 1e-12
    torch.testing.assert_close(both.entropy, torch.full((3,), 2500.0).double().log())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, LogitTransform()),
        ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
        ({"logits_scaling": 8.0}, LogitTransform(0.125)),
        ({"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
        ({"logit_scale": None, "final_logit_softcapping": None}, LogitTransform()),
    ],
)
def test_the_transform_is_read_from_the_configuration(config, expected):
    assert LogitTransform.of(SimpleNamespace(**config)) == expected
