"""What holds for every method under every one of its settings, and what a method must bring."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import penchant.methods
from penchant.config.keys import RunConfig
from penchant.methods import METHODS, Method, PairInputs
from penchant.methods.experience import Experience, RolloutInputs
from penchant.methods.inputs import LabelInputs, ScoreInputs
from penchant.methods.online import OnlineOptions

ROOT = Path(__file__).resolve().parents[2]
REWARDS = {"reward/chosen", "reward/rejected"}
COMPARED = {*REWARDS, "reward/margin", "reward/accuracy"}
NUMBERS = {
    "label_smoothing": 0.2, "rpo_alpha": 0.5, "f_alpha_divergence_coef": -0.5,
    "desirable_weight": 1.3, "undesirable_weight": 0.7, "center_rewards_coefficient": 0.01,
}  # fmt: skip
ONLINE_NUMBERS = {"entropy_coef": 0.1, "epsilon_high": 0.6, "beta": 0.0, "vf_coef": 2.0}
TOKENS = ("logprobs", "old_logprobs", "advantages", "entropy", "ref_logprobs", "values",
          "old_values", "returns", "divergence", "teacher_kl")  # fmt: skip


def draw(seed):
    """Functions that draw: log-probabilities of six completions, their lengths, and weights."""
    generator = torch.Generator().manual_seed(seed)
    return (
        lambda: -20 + 5 * torch.randn(6, generator=generator, dtype=torch.float64),
        lambda: torch.randint(1, 30, (6,), generator=generator),
        lambda: torch.rand(6, generator=generator, dtype=torch.float64),
    )


def make_pairs(seed):
    sums, lengths, weights = draw(seed)
    return PairInputs(
        *(sums(), sums(), sums(), sums(), lengths(), lengths()),
        prompt=sums(),
        prompt_len=lengths(),
        chosen_weight=weights(),
        rejected_weight=weights(),
        mean_chosen_len=12.5,
        mean_prompt_len=9.5,
    )


def make_labels(seed):
    sums, lengths, weights = draw(seed)
    return LabelInputs(sums(), sums(), lengths(), weights() < 0.5, kl=weights()[0])


def make_scores(seed):
    sums, _, weights = draw(seed)
    return ScoreInputs(sums() / 5 + 4, sums() / 5 + 4, weights())


def make_answers(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (6,), generator=generator)
    index = torch.arange(6).repeat_interleave(lengths)

    def values(scale=1.0):
        return scale * torch.randn(len(index), generator=generator, dtype=torch.float64)

    old = values() - 3
    return RolloutInputs(
        logprobs=old + values(scale=0.3),
        old_logprobs=old,
        advantages=values()[:6][index],
        lengths=lengths,
        entropy=values().abs(),
        mean_len=4.25,
        ref_logprobs=old + values(scale=0.3),
        values=values(),
        old_values=values(),
        returns=values(),
        divergence=values().abs(),
        teacher_kl=values().abs(),
    )


def pick(inputs, order):
    """Some examples of a global batch; what is said of the whole batch stays."""
    order = list(order)
    if isinstance(inputs, RolloutInputs):
        tokens = torch.cat([(inputs.index == i).nonzero().flatten() for i in order])
        values = {name: getattr(inputs, name)[tokens] for name in TOKENS}
        return replace(inputs, lengths=inputs.lengths[order], **values)
    tensors = {k: v for k, v in vars(inputs).items() if isinstance(v, torch.Tensor) and v.ndim}
    return replace(inputs, **{name: value[order] for name, value in tensors.items()})


def extreme_pairs(dtype):
    """Log-probs stay negative: it is the policy's or the reference's that is extreme."""
    start, still = pick(make_pairs(0), [0]), torch.tensor([-5.0], dtype=dtype)
    tensors = {name: value for name, value in vars(start).items() if torch.is_tensor(value)}
    rest = {name: torch.full((1,), 3.0, dtype=dtype) for name in tensors}
    for own, other, ratio in product(("chosen", "rejected"), ("chosen", "rejected"), (1e4, -1e4)):
        if own != other:
            policy = {own: still + min(ratio, 0), f"ref_{own}": still - max(ratio, 0)}
            yield PairInputs(**{**rest, **policy, other: still, f"ref_{other}": still})


def extremes_of_one_tensor(make):
    """A function that gives inputs of which the first tensor is extreme."""

    def extremes(dtype):
        inputs = make(0)
        first, *others = (k for k, value in vars(inputs).items() if value.is_floating_point())
        still = {key: getattr(inputs, key).to(dtype) for key in others}
        for extreme in (1e4, -1e4, 0.0):
            yield replace(inputs, **{first: torch.full((6,), extreme, dtype=dtype)}, **still)

    return extremes


def extreme_answers(dtype):
    start = pick(make_answers(0), [0])
    sides = ("logprobs", "old_logprobs", "ref_logprobs", "values")
    for side, amount, advantage in product(sides, (1e4, -1e4), (-3.0, 0.0, 3.0)):
        tokens = {name: torch.full_like(getattr(start, name), -5.0, dtype=dtype) for name in TOKENS}
        tokens["advantages"] = torch.full_like(tokens["advantages"], advantage)
        tokens[side] = tokens[side] + amount
        yield replace(start, **tokens)


@dataclass(frozen=True)
class Kind:
    """A kind of inputs: how a global batch of six is made, what is trained, what is reported."""

    make: Callable[[int], Any]
    extremes: Callable[[torch.dtype], Any]
    trained: tuple[str, ...]
    metrics: set[str]

    def leaves(self, inputs):
        """The inputs with gradients where they have them, and those tensors."""
        leaves = {name: getattr(inputs, name).clone().requires_grad_() for name in self.trained}
        return replace(inputs, **leaves), list(leaves.values())


SIDES = ("chosen", "rejected")
POLICY = {"policy/approxkl", "policy/clipfrac", "policy/entropy", "policy/policykl", "policy/ratio"}
KINDS = {
    ("pairs", "language"): Kind(
        make_pairs, extreme_pairs, SIDES, COMPARED | {"logprob/chosen", "logprob/rejected"}
    ),
    ("pairs", "score"): Kind(make_scores, extremes_of_one_tensor(make_scores), SIDES, COMPARED),
    ("labels", "language"): Kind(
        make_labels, extremes_of_one_tensor(make_labels), ("completion",), REWARDS
    ),
    ("prompts", "language"): Kind(
        make_answers,
        extreme_answers,
        ("logprobs", "values", "entropy"),
        {"loss/policy", *POLICY},
    ),
    ("prompts", "teacher"): Kind(
        make_answers, extreme_answers, ("divergence",), {"divergence", "kl/teacher", *POLICY}
    ),
}


def kind_of(method, options):
    taught = method.needs(options).divergence is not None
    return method.data, "teacher" if taught else method.model


def changes(method):
    """The defaults, then every choice and some of the numbers, changed one at a time."""
    yield {}
    numbers = ONLINE_NUMBERS if method.samples else NUMBERS
    if method.needs(method.defaults).divergence is not None:
        numbers = {"beta": 0.5}
    for key, field in method.options.model_fields.items():
        if key == "f_alpha_divergence_coef":
            yield {key: NUMBERS[key], "f_divergence_type": "alpha_divergence"}
        elif key in numbers:
            yield {key: numbers[key]}
        elif method.samples and key in OnlineOptions.model_fields:
            continue
        elif get_origin(field.annotation) is Literal:
            others = set(get_args(field.annotation)) - {field.default}
            yield from ({key: value} for value in sorted(others))
        elif field.annotation is bool:
            yield {key: not field.default}


VARIANTS = [
    ("-".join([name, *(f"{key}={value}" for key, value in change.items())]), method,
     method.options(**{**method.defaults.model_dump(exclude_unset=True), **change}))
    for name, method in METHODS.items()
    if name != "online_dpo"  # its answers come in pairs; test_online_dpo.py has its properties
    for change in changes(method)
]  # fmt: skip


def check_variants(check, kinds=KINDS):
    """Check every variant of some kinds of data; the failure names each variant that fails."""
    failures = {}
    for name, method, options in VARIANTS:
        kind = kind_of(method, options)
        if kind in kinds:
            try:
                check(method, options, KINDS[kind])
            except Exception as error:
                failures[name] = error
    if failures:
        lines = [f"{name}: {error}" for name, error in failures.items()]
        raise AssertionError("\n".join(lines)) from next(iter(failures.values()))


def test_a_failure_names_the_variants_that_fail():
    def fails_for_hinge(method, options, kind):
        if getattr(options, "loss_type", "") == "hinge":
            raise ValueError("no hinge")

    with pytest.raises(AssertionError) as failure:
        check_variants(fails_for_hinge)
    expected = "dpo-loss_type=hinge: no hinge\ncpo-loss_type=hinge: no hinge"
    assert str(failure.value) == expected


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), order=st.permutations(range(6)))
def test_permuting_examples_permutes_losses_and_metrics(seed, order):
    def check(method, options, kind):
        inputs = kind.make(seed)
        plain, permuted = method.loss(inputs, options), method.loss(pick(inputs, order), options)
        torch.testing.assert_close(permuted.per_example, plain.per_example[order])
        for name, value in plain.metrics.items():
            torch.testing.assert_close(permuted.metrics[name], value[order], equal_nan=True)

    check_variants(check)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_losses_gradients_and_metrics_do_not_depend_on_micro_batches(size):
    def check(method, options, kind):
        inputs, leaves = kind.leaves(kind.make(0))
        whole = method.loss(inputs, options)
        rest = {"batch": kind.make(0)} if isinstance(inputs, PairInputs) else {}
        parts = [
            method.loss(replace(pick(inputs, examples.tolist()), **rest), options)
            for examples in torch.arange(6).split(size)
        ]
        losses = torch.cat([part.per_example for part in parts])
        torch.testing.assert_close(losses, whole.per_example)
        torch.testing.assert_close(gradients(losses, leaves), gradients(whole.per_example, leaves))
        for name, value in whole.metrics.items():
            metric = torch.cat([part.metrics[name] for part in parts])
            torch.testing.assert_close(metric, value, equal_nan=True)

    check_variants(check)


def gradients(losses, leaves):
    return torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)


def test_nothing_is_reduced_and_metrics_carry_no_gradient():
    def check(method, options, kind):
        output = method.loss(kind.leaves(kind.make(0))[0], options)
        assert output.per_example.shape == (6,)
        assert output.per_example.requires_grad
        assert set(output.metrics) >= kind.metrics
        for name, value in output.metrics.items():
            assert value.shape == (6,), name
            assert not value.requires_grad, name

    check_variants(check)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_inputs_have_finite_losses_gradients_and_metrics(dtype):
    def check(method, options, kind):
        for extreme in kind.extremes(dtype):
            inputs, leaves = kind.leaves(extreme)
            output = method.loss(inputs, options)
            assert output.per_example.dtype == dtype
            values = [output.per_example, *gradients(output.per_example, leaves)]
            values += [m for m in output.metrics.values() if kind.trained != ("completion",)]
            assert all(value.isfinite().all() for value in values), inputs

    check_variants(check)


def test_widening_a_small_right_margin_lowers_the_loss():
    """From two nats on either side, and whatever becomes of the two sides by themselves."""

    def check(method, options, kind):
        even, four = torch.full((6,), -20.0, dtype=torch.float64), torch.full((6,), 4)
        start = replace(
            make_pairs(0), chosen=even + 2, rejected=even - 2, ref_chosen=even,
            ref_rejected=even, prompt=even, chosen_len=four, rejected_len=four,
        )  # fmt: skip
        inputs, leaves = kind.leaves(start)
        up, down = gradients(method.loss(inputs, options).per_example, leaves)
        assert (up - down < 0).all()

    check_variants(check, {("pairs", "language")})


def test_before_the_first_step_the_loss_raises_good_answers_and_lowers_bad_ones():
    def check(method, options, kind):
        start = make_answers(0)
        same = replace(start, logprobs=start.old_logprobs, ref_logprobs=start.old_logprobs)
        inputs, (logprobs, *_) = kind.leaves(same)
        output = method.loss(inputs, options)
        (gradient,) = torch.autograd.grad(output.per_example.sum(), logprobs)
        assert (gradient.sign() == -inputs.advantages.sign()).all()
        torch.testing.assert_close(output.metrics["policy/clipfrac"], torch.zeros(6).double())
        torch.testing.assert_close(output.metrics["policy/approxkl"], torch.zeros(6).double())

    check_variants(check, {("prompts", "language")})


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_permuting_an_experience_permutes_its_advantages(order, seed):
    experience = make_experience(seed)
    rows = [(experience.index == i).nonzero().flatten() for i in order]
    tokens = torch.cat(rows)
    moved = Experience(
        **{
            name: getattr(experience, name)[order]
            for name in ("lengths", "group", "scores", "ended", "by_reward", "penalties")
        },
        **{
            name: getattr(experience, name)[tokens]
            for name in ("logprobs", "ref_logprobs", "full_kl", "values", "entropy")
        },
    )

    def check(method, options, kind):
        plain = method.advantages(experience, 0.1, options)
        permuted = method.advantages(moved, 0.1, options)
        torch.testing.assert_close(permuted.advantages, plain.advantages[tokens])
        if plain.returns is not None:
            torch.testing.assert_close(permuted.returns, plain.returns[tokens])
        if plain.kept is not None:
            assert torch.equal(permuted.kept, plain.kept[order])
        assert permuted.metrics == pytest.approx(plain.metrics)

    check_variants(check, {("prompts", "language")})


def make_experience(seed):
    """Two prompts, three answers each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (6,), generator=generator)
    tokens = torch.randn(5, int(lengths.sum()), generator=generator, dtype=torch.float64)
    return Experience(
        lengths=lengths,
        group=torch.tensor([0, 0, 0, 1, 1, 1]),
        scores=torch.randn(6, generator=generator, dtype=torch.float64),
        logprobs=tokens[0],
        ref_logprobs=tokens[1],
        full_kl=tokens[2].abs(),
        values=tokens[3],
        entropy=tokens[4].abs(),
        ended=torch.rand(6, generator=generator) > 0.3,
        by_reward=torch.randn(6, 1, generator=generator, dtype=torch.float64),
        penalties=-torch.rand(6, generator=generator, dtype=torch.float64),
    )


def test_advantages_fit_their_experience_and_are_finite_for_one_answer_alone():
    """Rewards may drop all the other answers of a batch."""
    experience, one = make_experience(0), torch.ones(1)

    def check(method, options, kind):
        result = method.advantages(experience, 0.1, options)
        assert result.advantages.shape == experience.logprobs.shape
        assert result.kept is None or result.kept.shape == (6,)
        assert (result.returns is not None) == method.needs(options).values
        assert all(isinstance(value, float) for value in result.metrics.values())
        for score in (0.0, 3.0):
            alone = Experience(
                lengths=one.long(),
                group=one.long(),
                scores=one * score,
                logprobs=-one,
                ref_logprobs=-2 * one,
                full_kl=one,
                values=one,
                entropy=one,
                ended=one > 0,
                by_reward=one[:, None] * score,
                penalties=-one,
            )
            assert method.advantages(alone, 0.1, options).advantages.isfinite().all()

    check_variants(check, {("prompts", "language")})


def test_every_method_that_a_module_defines_has_an_entry_a_test_and_a_page():
    modules = pkgutil.iter_modules(penchant.methods.__path__, "penchant.methods.")
    defined = [
        value
        for module in modules
        for value in vars(import_module(module.name)).values()
        if isinstance(value, Method)
    ]
    assert {method.name: method for method in defined} == METHODS
    for name in METHODS:
        assert hasattr(penchant.methods, name), f"src/penchant/methods/{name}.py"
        assert (ROOT / "tests" / "methods" / f"test_{name}.py").is_file(), name
        assert (ROOT / "docs" / "methods" / f"{name}.md").is_file(), name


def test_facts_and_options_are_complete_and_sane():
    for name, method in METHODS.items():
        low, high = method.facts.learning_rate_range
        assert low <= method.facts.learning_rate <= high, name
        assert method.facts.learning_rate_lora >= method.facts.learning_rate, name
        assert method.facts.paper.startswith("https://arxiv.org/abs/"), name
        assert bool(method.facts.beta) == ("beta" in method.options.model_fields), name
        for key, field in method.options.model_fields.items():
            assert field.description, f"{key} needs a description: it is a command-line option"
            assert key not in RunConfig.model_fields, f"{key} is already a key of every run"


def test_a_method_that_needs_a_reference_does_not_run_without_one_and_others_do_not_read_it():
    def check(method, options, kind):
        inputs = make_pairs(0)
        without = replace(inputs, ref_chosen=None, ref_rejected=None)
        if method.needs_reference:
            with pytest.raises(AssertionError):
                method.loss(without, options)
        else:
            torch.testing.assert_close(
                method.loss(without, options).per_example,
                method.loss(inputs, options).per_example,
            )

    check_variants(check, {("pairs", "language")})
