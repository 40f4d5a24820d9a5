"""What holds for every method that samples its own answers, and which settings are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.methods import METHODS, RolloutInputs
from penchant.methods.experience import Experience
from penchant.methods.online import GroupOptions, OnlineOptions

METRICS = {
    "loss/policy",
    "policy/approxkl",
    "policy/clipfrac",
    "policy/entropy",
    "policy/policykl",
    "policy/ratio",
}
ONLINE = {name: method for name, method in METHODS.items() if method.samples}
NUMBERS = {"entropy_coef": 0.1, "epsilon_high": 0.6, "beta": 0.0, "vf_coef": 2.0}
TOKENS = ("logprobs", "old_logprobs", "advantages", "entropy", "ref_logprobs", "values",
          "old_values", "returns")  # fmt: skip


def changes(method):
    """The defaults, then the method's own choices and some of its numbers, one at a time."""
    yield {}
    for key, field in method.options.model_fields.items():
        if key in NUMBERS:
            yield {key: NUMBERS[key]}
        elif key not in OnlineOptions.model_fields:
            if get_origin(field.annotation) is Literal:
                others = set(get_args(field.annotation)) - {field.default}
                yield from ({key: value} for value in sorted(others))
            elif field.annotation is bool:
                yield {key: not field.default}


def variants():
    """Every method that samples, with each of its changes."""
    for name, method in ONLINE.items():
        for change in changes(method):
            words = [f"{key}={value}" for key, value in change.items()]
            chosen = method.options(reward="r", **change)
            yield pytest.param(method, chosen, id="-".join([name, *words]))


ALL = pytest.mark.parametrize(("method", "options"), list(variants()))


def made(seed, answers=6):
    """Everything that a method may need, as of one global mini-batch."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (answers,), generator=generator)
    index = torch.arange(answers).repeat_interleave(lengths)

    def values(scale=1.0):
        return scale * torch.randn(len(index), generator=generator, dtype=torch.float64)

    old = values() - 3
    return RolloutInputs(
        logprobs=old + values(scale=0.3),
        old_logprobs=old,
        advantages=values()[:answers][index],
        index=index,
        lengths=lengths,
        entropy=values().abs(),
        mean_len=4.25,
        ref_logprobs=old + values(scale=0.3),
        values=values(),
        old_values=values(),
        returns=values(),
    )


def pick(inputs, answers):
    """Some answers; what is said of the global mini-batch stays."""
    rows = [(inputs.index == i).nonzero().flatten() for i in answers]
    tokens = {name: getattr(inputs, name)[torch.cat(rows)] for name in TOKENS}
    lengths = inputs.lengths[list(answers)]
    index = torch.arange(len(lengths)).repeat_interleave(lengths)
    return replace(inputs, index=index, lengths=lengths, **tokens)


def trained(inputs):
    """The inputs with what has gradients, and those."""
    leaves = {
        name: getattr(inputs, name).clone().requires_grad_()
        for name in ("logprobs", "values", "entropy")
    }
    return replace(inputs, **leaves), list(leaves.values())


def gradients(loss, leaves):
    return torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)


@ALL
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(6)))
def test_permuting_answers_permutes_losses_and_metrics(method, options, seed, order):
    inputs = made(seed)
    plain, permuted = method.loss(inputs, options), method.loss(pick(inputs, order), options)
    torch.testing.assert_close(permuted.per_example, plain.per_example[order])
    for name, value in plain.metrics.items():
        torch.testing.assert_close(permuted.metrics[name], value[order])


@ALL
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_losses_and_gradients_do_not_depend_on_micro_batches(method, options, size):
    inputs, leaves = trained(made(0))
    whole = method.loss(inputs, options)
    parts = [
        method.loss(pick(inputs, answers.tolist()), options)
        for answers in torch.arange(6).split(size)
    ]
    losses = torch.cat([part.per_example for part in parts])
    torch.testing.assert_close(losses, whole.per_example)
    torch.testing.assert_close(gradients(losses, leaves), gradients(whole.per_example, leaves))
    for name, value in whole.metrics.items():
        torch.testing.assert_close(torch.cat([part.metrics[name] for part in parts]), value)


@ALL
def test_nothing_is_reduced_and_metrics_carry_no_gradient(method, options):
    inputs, _ = trained(made(0))
    found = method.loss(inputs, options)
    assert found.per_example.shape == (6,)
    assert found.per_example.requires_grad
    assert set(found.metrics) >= METRICS
    for name, value in found.metrics.items():
        assert value.shape == (6,), name
        assert not value.requires_grad, name


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_distances_have_finite_losses_gradients_and_metrics(method, options, dtype):
    start = pick(made(0), [0])
    sides = ("logprobs", "old_logprobs", "ref_logprobs", "values")
    for side, amount, advantage in product(sides, (1e4, -1e4), (-3.0, 0.0, 3.0)):
        tokens = {name: torch.full_like(getattr(start, name), -5.0, dtype=dtype) for name in TOKENS}
        tokens["advantages"] = torch.full_like(tokens["advantages"], advantage)
        tokens[side] = tokens[side] + amount
        inputs, leaves = trained(replace(start, **tokens))
        found = method.loss(inputs, options)
        assert found.per_example.isfinite().all(), (side, amount, advantage)
        assert all(gradient.isfinite().all() for gradient in gradients(found.per_example, leaves))
        assert all(value.isfinite().all() for value in found.metrics.values())


@ALL
def test_before_the_first_step_the_loss_raises_good_answers_and_lowers_bad_ones(method, options):
    start = made(0)
    same = replace(start, logprobs=start.old_logprobs, ref_logprobs=start.old_logprobs)
    inputs, (logprobs, *_) = trained(same)
    found = method.loss(inputs, options)
    (gradient,) = torch.autograd.grad(found.per_example.sum(), logprobs)
    assert (gradient.sign() == -inputs.advantages.sign()).all()
    torch.testing.assert_close(found.metrics["policy/clipfrac"], torch.zeros(6).double())
    torch.testing.assert_close(found.metrics["policy/approxkl"], torch.zeros(6).double())


@ALL
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_permuting_an_experience_permutes_its_estimate(method, options, order, seed):
    experience = experienced(seed)
    rows = [(experience.index == i).nonzero().flatten() for i in order]
    tokens = torch.cat(rows)
    moved = Experience(
        **{name: getattr(experience, name)[order] for name in ("lengths", "group", "scores")},
        **{
            name: getattr(experience, name)[tokens]
            for name in ("logprobs", "ref_logprobs", "full_kl", "values", "entropy")
        },
    )
    one = method.advantages(experience, 0.1, options)
    other = method.advantages(moved, 0.1, options)
    torch.testing.assert_close(other.advantages, one.advantages[tokens])
    if one.returns is not None:
        torch.testing.assert_close(other.returns, one.returns[tokens])
    if one.kept is not None:
        assert torch.equal(other.kept, one.kept[order])
    assert other.metrics == pytest.approx(one.metrics)


def experienced(seed):
    """Two prompts, three answers each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (6,), generator=generator)
    tokens = torch.randn(5, int(lengths.sum()), generator=generator, dtype=torch.float64)
    return Experience(
        lengths, torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.randn(6, generator=generator, dtype=torch.float64),
        tokens[0], tokens[1], tokens[2].abs(), tokens[3], tokens[4].abs(),
    )  # fmt: skip


@ALL
def test_an_estimate_fits_its_experience(method, options):
    experience = experienced(0)
    found = method.advantages(experience, 0.1, options)
    assert found.advantages.shape == experience.logprobs.shape
    assert found.kept is None or found.kept.shape == (6,)
    assert (found.returns is not None) == method.needs(options).values
    assert all(isinstance(value, float) for value in found.metrics.values())


@ALL
@pytest.mark.parametrize("score", [0.0, 3.0])
def test_one_answer_alone_has_a_finite_estimate(method, options, score):
    """Rewards may drop all others of a batch."""
    one = torch.ones(1)
    alone = Experience(
        one.long(), one.long(), one * score, -one, -2 * one, one, one, one
    )  # fmt: skip
    assert method.advantages(alone, 0.1, options).advantages.isfinite().all()


RUN = {"model": "M", "data": "D", "reward": "length:8"}


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"reward": []}, "reward names nothing"),
        ({"reward_weights": "1,2"}, "2 numbers for 1 rewards; give one each"),
        ({"reward": ["a", "b"], "reward_weights": [1.0]}, "1 numbers for 2 rewards"),
        ({"length_penalty": 0.1}, "length_penalty needs length_budget"),
        ({"overlong_buffer": 128}, r"overlong_buffer \(128\) must be shorter than"),
        ({"score_clip": 0}, "score_clip should be greater than 0"),
        ({"temperature": 0}, "temperature should be greater than 0"),
        ({"top_p": 1.5}, "top_p should be less than or equal to 1"),
        ({"generation": "cache"}, "generation should be 'auto', 'cached'"),
        ({"batch_size": 72}, r"batch_size \(72 sampled answers\) must be a multiple of the "),
        ({"per_device_train_batch_size": 3}, "mini-batch \\(12: "),
        ({"reference": "cache"}, "samples its answers: a cache cannot know them"),
        ({"max_completion_length": 1024}, "do not fit in max_length"),
        ({"max_completion_length": 600, "max_prompt_length": 500}, "do not fit in max_length"),
        ({"rewards": "x"}, "did you mean reward"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(method, keys, said):
    with pytest.raises(ConfigError, match=said):
        load_config(method, {**RUN, **keys})


def test_the_same_settings_one_step_less_far_are_taken():
    """What was refused above is refused for no other reason."""
    keys = {
        "reward": ["a", "b"], "reward_weights": "1,0.5", "length_penalty": 0.1,
        "length_budget": 20, "overlong_buffer": 127, "score_clip": 5, "batch_size": 80,
        "reference": "copy",
    }  # fmt: skip
    for method in ONLINE:
        config = load_config(method, {**RUN, **keys})
        assert config.options.reward_weights == (1.0, 0.5)
        assert load_config(method, config.flat()).options == config.options
        assert config.prompt_budget == 1024 - 128


@pytest.mark.parametrize(
    "method", [n for n, m in ONLINE.items() if "beta" in m.options.model_fields]
)
def test_a_method_without_a_divergence_runs_without_a_reference(method):
    without = {**RUN, "reference": "none"}
    assert load_config(method, {**without, "beta": 0}).reference == "none"
    with pytest.raises(ConfigError, match="compares with a reference"):
        load_config(method, {**without, "beta": 0.1})


@pytest.mark.parametrize(
    "method", [n for n, m in ONLINE.items() if issubclass(m.options, GroupOptions)]
)
def test_groups_are_sampled_whole(method):
    options = METHODS[method].options
    with pytest.raises(ValidationError, match=r"batch_size \(20\) must be a multiple"):
        options(reward="r", batch_size=20, num_generations=8)
    assert options(reward="r", batch_size=24, num_generations=8).generations == 8


def test_passes_over_a_batch_are_what_each_method_calls_them():
    assert METHODS["ppo"].options(reward="r", ppo_epochs=3).epochs == 3
    assert METHODS["ppo"].options(reward="r").generations == 1
    for name in ("grpo", "rloo"):
        assert METHODS[name].options(reward="r").epochs == 1
        assert METHODS[name].options(reward="r", num_iterations=3).epochs == 3
