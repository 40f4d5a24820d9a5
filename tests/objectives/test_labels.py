"""Labels: the KL estimate of a whole step, shared prompts, and held-out numbers."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.core.team import Team
from penchant.data.batch import Turns, segment_sums
from penchant.data.shared_prompts import share_prompts
from penchant.data.source import DatasetSource
from penchant.data.tokenised import TokenisedLabel
from penchant.methods import METHODS
from penchant.models.lora import add_lora
from penchant.models.reference import AdapterReference
from penchant.models.reference_copy import CopyReference
from penchant.objectives.base import Parts
from penchant.objectives.labels import LabelObjective, blocks_of, ranked_right

KTO = METHODS["kto"]


@pytest.fixture(scope="module")
def examples():
    """Nine of three prompts, in an order that puts some of a prompt side by side."""
    draw = random.Random(1)
    prompts = [[1, 5, 6, 7], [1], [1, 8, 9]]
    order = [0, 0, 1, 2, 1, 1, 0, 2, 2]
    return [
        TokenisedLabel(
            prompts[number],
            [draw.randrange(3, 97) for _ in range(draw.randint(1, 6))],
            i % 3 != 1,
            f"f:{i}",
        )
        for i, number in enumerate(order)
    ]


@pytest.fixture
def objective(make_model, scorer_for):
    """KTO on a policy that is not its reference, in fp64 throughout."""

    def make(layout="packed", examples=(), team=None, **options):
        policy = scorer_for(make_model("gpt2", dtype="float64"), layout)
        other = CopyReference(scorer_for(make_model("gpt2", dtype="float64", seed=1), layout))
        parts = Parts(policy, other, KTO, KTO.options(**options))
        return LabelObjective(parts if team is None else replace(parts, team=team), examples)

    return make


def test_mismatched_completion_is_cut_to_the_length_of_the_run(objective, make_model, one_step):
    """Beyond GPT-2's positions there is nothing to look up."""
    limit = make_model("gpt2").config.n_positions
    long, short = [5] * (limit - 2), [6] * 3
    examples = [
        TokenisedLabel([1, 2], long, True, "f:0"),
        TokenisedLabel([1] * (limit - 3), short, False, "f:1"),
    ]
    step = one_step(examples, micro_batch_size=2)
    kto = objective()
    with pytest.raises(IndexError):
        kto.prepare(kto.parts.scorer, step)
    kto.parts = replace(kto.parts, max_length=limit)
    kl = kto.prepare(kto.parts.scorer, step).kl
    cut = [examples[0], replace(examples[1], completion=long[:3])]
    whole = [replace(cut[0], completion=short), cut[1]]  # each prompt with the other's completion
    policy, reference = kto.parts.scorer, kto.parts.reference
    groups = [example.group() for example in whole]
    batch = policy.batch(groups)
    ours = segment_sums(batch, policy(batch))
    difference = ours - reference.sums(groups, batch)
    torch.testing.assert_close(kl, difference.mean().clamp(min=0).detach())
    assert kto.evaluate(examples, batch_size=2, progress=lambda items, _: items).num_examples == 2


def run_step(objective, step):
    """Losses, metrics and tokens of a step, and the gradients of the sum of its losses."""
    scorer = objective.parts.scorer
    scorer.zero_grad()
    shared = objective.prepare(scorer, step)
    outputs = [objective(scorer, micro, shared) for micro, _ in step.micro_batches]
    losses = torch.cat([output.per_example for output, _ in outputs])
    losses.sum().backward()
    metrics = {
        name: torch.cat([output.metrics[name] for output, _ in outputs])
        for name in outputs[0][0].metrics
    }
    gradients = {name: p.grad.clone() for name, p in scorer.named_parameters()}
    return losses.detach(), metrics, sum(tokens for _, tokens in outputs), gradients


# The KL estimate


def naive(policy, reference, examples, plain_logprobs, beta=0.1):
    """Losses and KL of a step by the definition, one completion at a time."""
    from penchant.data.batch import Group

    @torch.no_grad()
    def log_ratio(prompt, completion):
        group = [Group(prompt, (completion,))]
        return (plain_logprobs(policy, group) - plain_logprobs(reference, group)).sum().item()

    mismatched = []
    for i, example in enumerate(examples):
        j = i - 1
        while examples[j].prompt == example.prompt:  # below 0: from the end
            j -= 1
        mismatched.append(log_ratio(example.prompt, examples[j].completion))
    kl = max(0.0, sum(mismatched) / len(mismatched))
    losses = []
    for example in examples:
        gain = log_ratio(example.prompt, example.completion) - kl
        value = 1 / (1 + math.exp(-beta * gain if example.desirable else beta * gain))
        losses.append(1 - value)
    return torch.tensor(losses, dtype=torch.float64), kl


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 9])
def test_step_has_the_losses_and_the_kl_of_the_definition(
    layout, micro_batch_size, objective, examples, make_model, plain_logprobs, one_step
):
    models = (make_model("gpt2", dtype="float64", seed=seed) for seed in (0, 1))
    expected, kl = naive(*models, examples, plain_logprobs, beta=0.3)
    assert kl > 0
    step = one_step(examples, micro_batch_size=micro_batch_size)
    losses, metrics, _, _ = run_step(objective(layout, beta=0.3), step)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(metrics["kl"], torch.full((9,), kl, dtype=torch.float64))


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_micro_batches_add_up_to_one_batch(layout, micro_batch_size, objective, examples, one_step):
    whole = run_step(objective(layout), one_step(examples, micro_batch_size=9))
    parts = run_step(objective(layout), one_step(examples, micro_batch_size=micro_batch_size))
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-12, atol=1e-12)
    for name, values in whole[1].items():
        torch.testing.assert_close(parts[1][name], values, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert max(gradient.abs().max() for gradient in whole[3].values()) > 1e-3
    for name, gradient in whole[3].items():
        torch.testing.assert_close(parts[3][name], gradient, rtol=1e-9, atol=1e-12)


def test_kl_is_an_estimate_without_gradient(
    objective, examples, make_model, plain_logprobs, one_step
):
    """The gradient is that of the losses with the number that the estimate has."""
    models = [make_model("gpt2", dtype="float64", seed=seed) for seed in (0, 1)]
    _, kl = naive(*models, examples, plain_logprobs)
    policy, reference = models
    losses = []
    for example in examples:
        ours = plain_logprobs(policy, [example.group()]).sum()
        theirs = plain_logprobs(reference, [example.group()]).sum().detach()
        gain = ours - theirs - kl
        losses.append(1 - (0.1 * (gain if example.desirable else -gain)).sigmoid())
    torch.stack(losses).sum().backward()
    for size in (2, 9):
        *_, found = run_step(objective(), one_step(examples, micro_batch_size=size))
        for name, parameter in policy.named_parameters():
            gradient = found[f"model.{name}"]
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("micro_batch_size", "passes"), [(9, 1), (2, 5)])
def test_reference_scores_right_and_wrong_completions_in_one_pass(
    micro_batch_size, passes, objective, examples, one_step
):
    one = objective()
    calls = {"policy": 0, "reference": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    one.parts.scorer.register_forward_hook(count("policy"))
    with one.parts.reference.active() as scorer:
        scorer.register_forward_hook(count("reference"))
    run_step(one, one_step(examples, micro_batch_size=micro_batch_size))
    assert calls == {"policy": 2 * passes, "reference": passes}


def test_negative_estimate_counts_as_none(objective, examples, make_model, scorer_for, one_step):
    one = objective()
    # The other way round: the estimate was positive before.
    parts = replace(
        one.parts,
        scorer=scorer_for(make_model("gpt2", dtype="float64", seed=1)),
        reference=CopyReference(scorer_for(make_model("gpt2", dtype="float64"))),
    )
    for size in (3, 9):
        _, metrics, _, _ = run_step(
            LabelObjective(parts), one_step(examples, micro_batch_size=size)
        )
        assert metrics["kl"].tolist() == [0.0] * 9


def test_processes_share_one_estimate(objective, examples, one_step):
    whole = objective().prepare(objective().parts.scorer, one_step(examples, micro_batch_size=2))
    found = {}

    def kl_of(rank, others):
        own = []

        class Two(Team):
            def gather(self, values):
                own.extend(values)
                return [values, others]

        one = objective(team=Two(rank, 2))
        step = one_step(examples, micro_batch_size=2, team=Team(rank, 2))
        found[rank] = own
        return one.prepare(one.parts.scorer, step).kl

    kl_of(0, [])
    kls = [kl_of(1, found[0]), kl_of(0, found[1])]
    assert [len(values) for values in found.values()] == [5, 4]
    for kl in kls:
        torch.testing.assert_close(kl, whole.kl)


def test_loss_that_needs_no_estimate_makes_no_pass_for_it(
    objective, examples, plain_logprobs, one_step
):
    one = objective(loss_type="apo_zero_unpaired")
    calls = []
    one.parts.scorer.register_forward_hook(lambda *_: calls.append(1))
    for size, passes in ((9, 1), (3, 3)):
        step = one_step(examples, micro_batch_size=size)
        shared = one.prepare(one.parts.scorer, step)
        outputs = [one(one.parts.scorer, micro, shared) for micro, _ in step.micro_batches]
        assert len(calls) == passes
        assert "kl" not in outputs[0][0].metrics
        calls.clear()


# Mismatched completions


LABELS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(10, 19), st.booleans()), min_size=1, max_size=24
)


def labels_of(drawn):
    return [
        TokenisedLabel([1, prompt], [completion, i], desirable, f"f:{i}")
        for i, (prompt, completion, desirable) in enumerate(drawn)
    ]


@settings(max_examples=60, deadline=None)
@given(
    drawn=LABELS,
    step_size=st.integers(1, 8),
    seed=st.integers(0, 99),
    in_blocks=st.booleans(),
)
def test_completion_is_never_paired_with_its_own_prompt(drawn, step_size, seed, in_blocks):
    """Under any shuffle, also where a step has one prompt only or a single example."""
    examples = [*labels_of(drawn), TokenisedLabel([1, 9], [50], True, "f:other")]
    parts = Parts(None, None, KTO, KTO.options())
    objective = LabelObjective(parts, examples)
    source = DatasetSource(
        examples,
        micro_batch_size=step_size,
        accumulation=1,
        num_epochs=2,
        max_steps=None,
        shuffle=True,
        seed=seed,
        blocks=blocks_of(examples) if in_blocks else None,
    )
    prompt_of = {tuple(e.completion): e.prompt for e in examples}
    for step in source.steps():
        found = objective._mismatches(step.examples)
        assert len(found) == len(step.examples)
        for example in step.examples:
            assert prompt_of[tuple(found[id(example)])] != example.prompt


def test_mismatched_completion_is_the_nearest_before_in_a_circle(examples):
    """Prompts 0 0 1 2 1 1 0 2 2: the first two take the last, and so on."""
    objective = LabelObjective(Parts(None, None, KTO, KTO.options()))
    found = objective._mismatches(examples)
    taken = [
        next(i for i, e in enumerate(examples) if e.completion == found[id(example)])
        for example in examples
    ]
    assert taken == [8, 8, 1, 2, 3, 3, 5, 6, 6]


def test_mismatched_completion_that_keeps_no_trained_token_is_passed_over(objective, one_step):
    """A template's generation marks may begin late; only where nothing else is left is it 0."""
    late = Turns([5, 6, 7, 8, 9], ((3, 5),))
    examples = [
        TokenisedLabel([1, 2], [30, 31], True, "f:0"),
        TokenisedLabel([1], late, False, "f:1"),
        TokenisedLabel([1] * 5, [40, 41], True, "f:2"),
    ]
    kto = objective()
    kto.parts = replace(kto.parts, max_length=7)
    found = kto._mismatches(examples)
    assert found[id(examples[2])] == [30, 31]
    assert list(found[id(examples[0])]) == [40, 41]
    alone = kto.prepare(kto.parts.scorer, one_step(examples[1:], micro_batch_size=1))
    assert torch.isfinite(alone.kl)


# Shared prompts


@settings(max_examples=60, deadline=None)
@given(drawn=LABELS)
def test_sharing_prompts_keeps_every_item_in_its_place(drawn):
    items = [([1, prompt], [completion, i]) for i, (prompt, completion, _) in enumerate(drawn)]
    groups, order = share_prompts(items)
    assert len(groups) == len({tuple(prompt) for prompt, _ in items})
    laid_out = [(list(group.prompt), c) for group in groups for c in group.completions]
    assert [laid_out[place] for place in order] == items
    assert sorted(order) == list(range(len(items)))


def test_prompt_of_two_labels_is_laid_out_once(objective, one_step):
    prompt = [1, 5, 6, 7, 8]
    twice = [
        TokenisedLabel(prompt, [10, 11], True, "f:1"),
        TokenisedLabel(prompt, [12, 13, 14], False, "f:2"),
    ]
    one = objective(loss_type="apo_zero_unpaired")
    *_, tokens, _ = run_step(one, one_step(twice, micro_batch_size=2))
    assert tokens == 5 + 2 + 3
    *_, tokens, _ = run_step(one, one_step(twice, micro_batch_size=1))
    assert tokens == (5 + 2) + (5 + 3)


@settings(max_examples=100, deadline=None)
@given(drawn=LABELS)
def test_blocks_hold_every_example_once_and_twos_of_one_prompt_with_both_labels(drawn):
    examples = labels_of(drawn)
    blocks = blocks_of(examples)
    assert sorted(i for block in blocks for i in block) == list(range(len(examples)))
    alone = []
    for block in blocks:
        assert len(block) in (1, 2)
        if len(block) == 2:
            one, other = (examples[i] for i in block)
            assert one.prompt == other.prompt
            assert one.desirable != other.desirable
        else:
            alone.append(examples[block[0]])
    # No two are left alone that could have been together.
    kinds = {(tuple(e.prompt), e.desirable) for e in alone}
    assert not any((prompt, not desirable) in kinds for prompt, desirable in kinds)


def test_shuffling_blocks_keeps_the_good_and_the_bad_answer_to_a_prompt_in_one_step(one_step):
    examples = labels_of([(i, 10, d) for i in range(12) for d in (True, False)])
    source = DatasetSource(
        examples,
        micro_batch_size=4,
        accumulation=1,
        num_epochs=1,
        max_steps=None,
        shuffle=True,
        seed=0,
        blocks=blocks_of(examples),
    )
    steps = list(source.steps())
    assert [e.where for step in steps for e in step.examples] != [e.where for e in examples]
    for step in steps:
        groups, _ = share_prompts([(e.prompt, e.completion) for e in step.examples])
        assert [len(group.completions) for group in groups] == [2, 2]


# Held-out numbers


def labelled(*rows):
    return [TokenisedLabel([1, p], [10 + i], d, f"f:{i}") for i, (p, d) in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "rewards", "share"),
    [
        # Prompt 0: 2 beats 1 and loses to 3; prompt 1: equal; prompt 2 has nothing to compare.
        (
            [(0, True), (0, False), (0, False), (1, True), (1, False), (2, True)],
            [2.0, 1.0, 3.0, 0.0, 0.0, 9.0],
            (1 + 0 + 0.5) / 3,
        ),
        # No prompt has both kinds: 1 and 3 against 2 and 0.
        ([(0, True), (0, True), (1, False), (2, False)], [1.0, 3.0, 2.0, 0.0], 3 / 4),
        # Nothing bad at all: as good as any guess.
        ([(0, True), (1, True)], [1.0, 2.0], 0.5),
    ],
)
def test_rewards_are_ranked_within_prompts_or_all_with_all(rows, rewards, share):
    assert ranked_right(labelled(*rows), torch.tensor(rewards)) == pytest.approx(share)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_number_equals_the_naive_computation(
    layout, batch_size, objective, examples, quietly, make_model, plain_logprobs
):
    one = objective(layout, beta=0.3)
    policy, reference = (make_model("gpt2", dtype="float64", seed=seed) for seed in (0, 1))
    losses, _ = naive(policy, reference, examples, plain_logprobs, beta=0.3)
    with torch.no_grad():
        groups = [e.group() for e in examples]
        lengths = [len(e.completion) for e in examples]
        ours, theirs = (
            torch.stack([part.sum() for part in plain_logprobs(model, groups).split(lengths)])
            for model in (policy, reference)
        )
    rewards = 0.3 * (ours - theirs)
    good = torch.tensor([e.desirable for e in examples])
    found = quietly(one, examples, batch_size)
    assert found.num_examples == 9
    assert found.loss == pytest.approx(losses.mean().item())
    assert found.reward_chosen == pytest.approx(rewards[good].mean().item())
    assert found.reward_rejected == pytest.approx(rewards[~good].mean().item())
    assert found.margin == pytest.approx(found.reward_chosen - found.reward_rejected)
    assert found.logprob_chosen == pytest.approx(ours[good].mean().item())
    assert found.logprob_rejected == pytest.approx(ours[~good].mean().item())
    assert found.accuracy == ranked_right(examples, rewards)
    assert found.logprob_accuracy == ranked_right(examples, ours)
    assert found.kl is not None
    assert found.kl > 0


def test_evaluating_leaves_no_gradients_and_the_mode_as_it_was(objective, examples, quietly):
    one = objective()
    one.parts.scorer.train()
    quietly(one, examples)
    assert one.parts.scorer.training
    assert all(p.grad is None for p in one.parts.scorer.parameters())


def test_fresh_adapter_has_accuracy_one_half_and_the_loss_of_no_opinion(
    make_model, scorer_for, examples, quietly
):
    lora = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    scorer = scorer_for(lora)
    parts = Parts(scorer, AdapterReference(scorer), KTO, KTO.options())
    found = quietly(LabelObjective(parts), examples)
    assert found.accuracy == 0.5
    assert found.margin == 0
    assert found.loss == pytest.approx(0.5)
    assert found.kl == pytest.approx(0, abs=1e-6)


def test_held_out_examples_of_one_prompt_borrow_from_the_training_data(
    objective, examples, quietly
):
    of_one = [e for e in examples if e.prompt == examples[0].prompt]
    found = quietly(objective(examples=examples), of_one)
    assert found.num_examples == 3
    assert math.isfinite(found.loss)
