"""Pairs: their inputs, and held-out numbers against a naive computation with full logits."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import LoraLayer

from penchant.core.team import Team
from penchant.data.batch import Group, pack
from penchant.data.source import DatasetSource
from penchant.methods import METHODS
from penchant.models.lora import add_lora
from penchant.models.reference import AdapterReference, KeptSums
from penchant.models.reference_cache import CachedReference
from penchant.models.reference_copy import CopyReference
from penchant.objectives.base import Parts
from penchant.objectives.pair_inputs import pair_inputs, tail_weights
from penchant.objectives.pairs import PairObjective

DPO, IPO = METHODS["dpo"], METHODS["ipo"]


@pytest.fixture
def evaluate(quietly, pairs):
    """Evaluate a policy on the pairs."""

    def run(scorer, reference, method=DPO, batch_size=2, examples=pairs, **options):
        parts = Parts(scorer, reference, method, method.options(**options))
        return quietly(PairObjective(parts), examples, batch_size)

    return run


@torch.no_grad()
def logits_of(model, prompt, completion):
    """`[tokens, V]` log-probabilities at the positions that predict a completion."""
    out = model(input_ids=torch.tensor([[*prompt, *completion]])).logits
    return out[0, len(prompt) - 1 : -1].double().log_softmax(-1)


def naive(policy, reference, pairs, beta):
    """Every field of an Evaluation under DPO, from full logits."""
    totals = dict.fromkeys(
        ("loss", "accuracy", "margin", "reward_chosen", "reward_rejected"), 0.0
    ) | dict.fromkeys(("logprob_accuracy", "logprob_chosen", "logprob_rejected"), 0.0)
    kl = entropy = tokens = 0.0
    for example in pairs:
        sums, ratios = [], []
        for completion in (example.chosen, example.rejected):
            p = logits_of(policy, example.prompt, completion)
            q = logits_of(reference, example.prompt, completion)
            targets = torch.tensor(completion).unsqueeze(1)
            own, other = p.gather(1, targets).sum().item(), q.gather(1, targets).sum().item()
            sums.append(own)
            ratios.append(own - other)
            kl += (p.exp() * (p - q)).sum().item()
            entropy -= (p.exp() * p).sum().item()
            tokens += len(completion)
        margin = beta * (ratios[0] - ratios[1])
        totals["loss"] += math.log1p(math.exp(-margin))
        totals["accuracy"] += margin > 0
        totals["margin"] += margin
        totals["reward_chosen"] += beta * ratios[0]
        totals["reward_rejected"] += beta * ratios[1]
        totals["logprob_accuracy"] += sums[0] > sums[1]
        totals["logprob_chosen"] += sums[0]
        totals["logprob_rejected"] += sums[1]
    means = {name: total / len(pairs) for name, total in totals.items()}
    return means | {"kl": kl / tokens, "entropy": entropy / tokens}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_number_equals_the_naive_computation(
    layout, batch_size, make_model, scorer_for, evaluate, pairs
):
    expected = naive(make_model(), make_model(seed=1), pairs, beta=0.3)
    assert 0 < expected["accuracy"] < 1
    reference = CopyReference(scorer_for(make_model(seed=1), layout))
    found = evaluate(scorer_for(make_model(), layout), reference, batch_size=batch_size, beta=0.3)
    assert found.num_examples == len(pairs)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=2e-5, rel=1e-5), name


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "phi"])
def test_kl_and_entropy_are_of_the_logits_as_the_model_transforms_them(
    family, make_model, scorer_for, evaluate, pairs
):
    expected = naive(make_model(family), make_model(family, seed=1), pairs, beta=0.1)
    reference = CopyReference(scorer_for(make_model(family, seed=1), "padded"))
    found = evaluate(scorer_for(make_model(family), "padded"), reference)
    assert found.kl == pytest.approx(expected["kl"], rel=1e-4)
    assert found.entropy == pytest.approx(expected["entropy"], rel=1e-4)
    assert found.logprob_chosen == pytest.approx(expected["logprob_chosen"], rel=1e-5)


def test_a_reference_that_transforms_its_logits_otherwise_is_compared_as_it_is(
    make_model, scorer_for, evaluate, pairs
):
    other = {"family": "granite", "logits_scaling": 3.0, "seed": 1}
    expected = naive(make_model("granite"), make_model(**other), pairs, beta=0.3)
    reference = CopyReference(scorer_for(make_model(**other)))
    found = evaluate(scorer_for(make_model("granite")), reference, beta=0.3)
    assert found.kl == pytest.approx(expected["kl"], rel=1e-4)
    assert found.margin == pytest.approx(expected["margin"], rel=1e-4)


def test_a_policy_that_is_its_reference_has_accuracy_one_half_and_no_kl(
    make_model, scorer_for, evaluate
):
    found = evaluate(scorer_for(make_model()), CopyReference(scorer_for(make_model())))
    assert found.accuracy == 0.5
    assert found.margin == found.reward_chosen == found.reward_rejected == 0
    assert found.loss == pytest.approx(math.log(2))
    assert found.kl == pytest.approx(0, abs=1e-6)


def test_a_fresh_adapter_is_its_reference(make_model, scorer_for, evaluate):
    lora = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    scorer = scorer_for(lora)
    found = evaluate(scorer, AdapterReference(scorer))
    assert found.accuracy == 0.5
    assert found.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("target_modules", ["all-linear", "q_proj,lm_head"])
def test_an_adapter_is_compared_with_the_model_below_it(
    target_modules, make_model, scorer_for, evaluate, pairs
):
    def build():
        model = add_lora(make_model(), r=2, alpha=8, dropout=0.3, target_modules=target_modules)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    expected = naive(build(), make_model(), pairs, beta=0.3)
    scorer = scorer_for(build()).train()
    found = evaluate(scorer, AdapterReference(scorer), beta=0.3)
    assert scorer.training
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-4, rel=1e-4), name


def test_references_in_another_layout_or_on_disk_give_the_same_but_for_kl(
    make_model, tmp_path, scorer_for, evaluate, pairs
):
    policy = scorer_for(make_model())
    expected = evaluate(policy, CopyReference(scorer_for(make_model(seed=1))))
    cache = CachedReference(tmp_path, make_model(seed=1), "fp32")
    groups = [example.group() for example in pairs]
    cache.fill(
        groups, scorer_for(make_model(seed=1)), batch_size=2, progress=lambda items, _: items
    )
    elsewhere = CopyReference(scorer_for(make_model(seed=1), "plain"))
    for reference in (cache, elsewhere):
        found = evaluate(policy, reference)
        assert found.margin == pytest.approx(expected.margin, abs=1e-5)
        assert found.loss == pytest.approx(expected.loss, abs=1e-5)
        assert found.accuracy == expected.accuracy
        assert found.kl is found.entropy is None


def test_numbers_do_not_depend_on_order_or_batch_size(make_model, scorer_for, evaluate, pairs):
    policy, reference = scorer_for(make_model()), CopyReference(scorer_for(make_model(seed=1)))
    expected = evaluate(policy, reference, IPO)
    found = evaluate(policy, reference, IPO, batch_size=3, examples=pairs[::-1])
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-5), name


def test_the_loss_and_rewards_are_the_methods_own(make_model, scorer_for, evaluate):
    policy, reference = scorer_for(make_model()), CopyReference(scorer_for(make_model(seed=1)))
    dpo, ipo = (evaluate(policy, reference, method, beta=0.3) for method in (DPO, IPO))
    assert dpo.logprob_chosen == ipo.logprob_chosen
    assert dpo.kl == ipo.kl
    assert abs(dpo.margin - ipo.margin) > 0.1
    assert abs(dpo.loss - ipo.loss) > 0.1


def test_evaluating_leaves_no_gradients_and_the_mode_as_it_was(make_model, scorer_for, evaluate):
    policy = scorer_for(make_model()).train()
    evaluate(policy, CopyReference(scorer_for(make_model(seed=1))))
    assert policy.training
    assert all(p.grad is None for p in policy.parameters())


def test_pairs_without_a_reference_have_log_probs_alone(make_model, scorer_for, pairs):
    scorer = scorer_for(make_model())
    batch = scorer.batch([example.group() for example in pairs])
    inputs = pair_inputs(scorer(batch), batch, None)
    assert inputs.ref_chosen is inputs.ref_rejected is None
    assert inputs.chosen_len.tolist() == [4, 2, 3, 1, 4]
    assert inputs.rejected_len.tolist() == [3, 7, 3, 2, 1]
    expected = [
        logits_of(make_model(), e.prompt, e.rejected)[range(len(e.rejected)), e.rejected].sum()
        for e in pairs
    ]
    torch.testing.assert_close(inputs.rejected.double(), torch.stack(expected), rtol=0, atol=1e-4)


# Inputs of a step


@pytest.fixture
def objective_for(make_model, scorer_for):
    """A method on a policy that is not its reference, in fp64 throughout."""

    def make(method, layout="packed", team=None, **options):
        policy = scorer_for(make_model("gpt2", dtype="float64"), layout)
        other = None
        if METHODS[method].needs_reference:
            other = CopyReference(scorer_for(make_model("gpt2", dtype="float64", seed=1), layout))
        spec = METHODS[method]
        parts = Parts(policy, other, spec, spec.options(**options))
        return PairObjective(parts if team is None else replace(parts, team=team))

    return make


def inputs_of(objective, step):
    """The inputs of each micro-batch of a step."""
    shared = objective.prepare(objective.parts.scorer, step)
    return [
        objective._inputs(objective.parts.scorer, micro_batch, shared)[0]
        for micro_batch, _ in step.micro_batches
    ]


def test_tokens_behind_the_shorter_completions_end_count_less():
    """Completions of 3 and 1 tokens, of 2 and 4, and both prompts, of 2 and 0 scored tokens."""
    batch = pack([Group([1, 5, 6], ([7, 8, 9], [10])), Group([1], ([11, 12], [13, 14, 15, 16]))])
    assert tail_weights(batch, 1.0) is None
    one, less = [1.0], [0.25]
    expected = [*one, *less * 2, *one, *one * 2, *one * 2, *less * 2]
    assert tail_weights(batch, 0.25).tolist() == expected
    with_prompts = pack(
        [Group([1, 5, 6], ([7, 8, 9], [10])), Group([1], ([11, 12], [13, 14, 15, 16]))],
        with_prompts=True,
    )
    assert tail_weights(with_prompts, 0.25).tolist() == [*expected, 1.0, 1.0]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_log_probs_with_a_lighter_tail_and_the_likelihood_without(
    layout, objective_for, make_model, pairs, one_step
):
    models = [make_model("gpt2", dtype="float64", seed=seed) for seed in (0, 1)]
    one = objective_for("dpo", layout, ld_alpha=0.4, rpo_alpha=1.0)
    (inputs,) = inputs_of(one, one_step(pairs, micro_batch_size=5))
    for i, pair in enumerate(pairs):
        for side in ("chosen", "rejected"):
            completion = getattr(pair, side)
            shared = min(len(pair.chosen), len(pair.rejected))
            weight = torch.ones(len(completion), dtype=torch.float64)
            weight[shared:] = 0.4
            for model, prefix in zip(models, ("", "ref_"), strict=True):
                rows = logits_of(model, pair.prompt, completion)
                tokens = rows[range(len(completion)), completion]
                found = getattr(inputs, prefix + side)[i].item()
                assert found == pytest.approx((weight * tokens).sum().item())
                if side == "chosen" and not prefix:
                    assert inputs.chosen_nll[i].item() == pytest.approx(-tokens.sum().item())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_weights_say_how_probable_a_completion_is_beside_the_policys_own(
    layout, objective_for, make_model, pairs, one_step
):
    """WPO Eq. 2: exp of the mean of log p(y) - log sum_v p(v)^2 over a completion."""
    model = make_model("gpt2", dtype="float64")
    one = objective_for("dpo", layout, use_weighting=True)
    (inputs,) = inputs_of(one, one_step(pairs, micro_batch_size=5))
    for i, pair in enumerate(pairs):
        for side in ("chosen", "rejected"):
            completion = getattr(pair, side)
            rows = logits_of(model, pair.prompt, completion)
            tokens = rows[range(len(completion)), completion]
            expected = (tokens - (2 * rows).logsumexp(-1)).mean().exp().item()
            found = getattr(inputs, f"{side}_weight")
            assert not found.requires_grad
            assert found[i].item() == pytest.approx(expected)
            assert getattr(inputs, side)[i].item() == pytest.approx(tokens.sum().item())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_prompts_are_scored_where_the_method_learns_them(
    layout, objective_for, make_model, pairs, one_step
):
    model = make_model("gpt2", dtype="float64")
    (inputs,) = inputs_of(objective_for("orpo", layout), one_step(pairs, micro_batch_size=5))
    assert inputs.ref_chosen is None
    assert inputs.prompt_len.tolist() == [len(pair.prompt) - 1 for pair in pairs]
    for i, pair in enumerate(pairs):
        expected = 0.0
        if len(pair.prompt) > 1:
            rows = logits_of(model, pair.prompt[:1], pair.prompt[1:])
            expected = rows[range(len(pair.prompt) - 1), pair.prompt[1:]].sum().item()
        assert inputs.prompt[i].item() == pytest.approx(expected)
    (without,) = inputs_of(
        objective_for("orpo", layout, nll_scope="completion"), one_step(pairs, micro_batch_size=5)
    )
    assert without.prompt is None
    torch.testing.assert_close(without.chosen, inputs.chosen)


def test_averages_over_tokens_are_those_of_the_whole_step(objective_for, pairs, one_step):
    (whole,) = inputs_of(objective_for("orpo"), one_step(pairs, micro_batch_size=5))
    parts = inputs_of(objective_for("orpo"), one_step(pairs, micro_batch_size=2))
    assert whole.mean_chosen_len == (4 + 2 + 3 + 1 + 4) / 5
    assert whole.mean_prompt_len == (4 + 0 + 2 + 1 + 3) / 5
    for part in parts:
        assert part.mean_chosen_len == whole.mean_chosen_len
        assert part.mean_prompt_len == whole.mean_prompt_len
    nll = torch.cat([part.nll(with_prompt=True) for part in parts])
    torch.testing.assert_close(nll, whole.nll(with_prompt=True))
    # Its mean is that over all tokens of the step, as in supervised training.
    tokens = 14 + 10
    total = -(whole.chosen.sum() + whole.prompt.sum())
    torch.testing.assert_close(nll.mean(), total / tokens)


def test_whole_batch_is_at_hand_in_every_micro_batch_and_without_gradient(
    objective_for, pairs, one_step
):
    one = objective_for("aot")
    step = one_step(pairs, micro_batch_size=2)
    (whole,) = inputs_of(objective_for("aot"), one_step(pairs, micro_batch_size=5))
    assert whole.batch is None  # these are the whole batch
    for part in inputs_of(one, step):
        for name in ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_len"):
            torch.testing.assert_close(getattr(part.batch, name), getattr(whole, name))
            assert not getattr(part.batch, name).requires_grad
        assert part.chosen.requires_grad
    assert inputs_of(objective_for("dpo"), step)[0].batch is None  # costs a pass, and not asked for


def test_processes_share_one_whole_batch(objective_for, pairs, one_step):
    (whole,) = inputs_of(objective_for("aot"), one_step(pairs, micro_batch_size=5))
    found = {}

    def batch_of(rank, others):
        class Two(Team):
            def gather(self, own):
                found[rank] = own
                return [own, others]

        one = objective_for("aot", team=Two(rank, 2))
        step = one_step(pairs, micro_batch_size=2, team=Team(rank, 2))
        return one.prepare(one.parts.scorer, step).batch

    batch_of(0, [])
    for batch in (batch_of(1, found[0]), batch_of(0, found[1])):
        torch.testing.assert_close(batch.chosen.sort().values, whole.chosen.sort().values)
        torch.testing.assert_close(batch.ref_rejected.sort().values,
                                   whole.ref_rejected.sort().values)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dpo", {"ld_alpha": 0.4, "rpo_alpha": 1.0}),
        ("dpo", {"use_weighting": True}),
        ("orpo", {}),
        ("aot", {}),
        ("simpo", {}),
    ],
    ids=str,
)
def test_evaluation_has_the_loss_that_training_has_on_one_batch(
    method, options, objective_for, pairs, quietly, one_step
):
    one = objective_for(method, **options)
    step = one_step(pairs, micro_batch_size=5)
    with torch.no_grad():
        output, _ = one(one.parts.scorer, pairs, one.prepare(one.parts.scorer, step))
    for batch_size in (2, 5):
        found = quietly(one, pairs, batch_size)
        assert found.loss == pytest.approx(output.per_example.mean().item())
        assert found.margin == pytest.approx(output.metrics["reward/margin"].mean().item())
        assert (found.kl is None) == (one.parts.reference is None)


def test_a_loss_of_the_whole_batch_asks_the_reference_once_for_each_pair(
    make_model, scorer_for, pairs
):
    """The values are those of a step that is not divided, where nothing can be shared."""
    method = METHODS["aot"]
    policy = scorer_for(make_model())
    reference = CopyReference(scorer_for(make_model(seed=1)))
    asked: list[int] = []

    class Counting:
        kind = "copy"

        def sums(self, groups, batch, weights=None):
            asked.append(len(groups))
            return reference.sums(groups, batch, weights)

    objective = PairObjective(Parts(policy, Counting(), method, method.options()))

    def losses(*sizes):
        parts, start = [], 0
        for size in sizes:
            parts.append((list(pairs[start : start + size]), float(size)))
            start += size
        step = SimpleNamespace(examples=list(pairs[:4]), micro_batches=parts)
        shared = objective.prepare(policy, step)
        return torch.cat([objective(policy, part, shared)[0].per_example for part, _ in parts])

    with torch.no_grad():
        divided, whole = losses(1, 3), losses(4)
    assert torch.allclose(divided, whole, atol=1e-5)
    assert asked == [1, 3, 4]


@pytest.mark.parametrize(
    ("method", "options"),
    [("dpo", {}), ("dpo", {"ld_alpha": 0.5}), ("aot", {})],
    ids=["dpo", "weighted", "whole-batch"],
)
def test_later_epochs_ask_the_reference_nothing_and_lose_no_bit(
    method, options, make_model, scorer_for, pairs
):
    """Passes are counted on the model itself, while the policy learns."""
    source = DatasetSource(
        pairs, micro_batch_size=2, accumulation=2, num_epochs=3, max_steps=None, shuffle=False,
        seed=0,
    )  # fmt: skip
    spec = METHODS[method]

    def losses(kept):
        policy = scorer_for(
            add_lora(make_model(), r=2, alpha=4, dropout=0.1, target_modules="all-linear")
        )
        passes = []
        layer = next(m for m in policy.modules() if isinstance(m, LoraLayer))
        layer.register_forward_hook(lambda m, *_: passes.append(1) if m.disable_adapters else None)
        reference = AdapterReference(policy)
        reference = KeptSums(reference) if kept else reference
        objective = PairObjective(Parts(policy, reference, spec, spec.options(**options)))
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
        torch.manual_seed(0)
        found, by_epoch = [], []
        for step in source.steps():
            shared = objective.prepare(policy, step)
            for examples, _ in step.micro_batches:
                output, _ = objective(policy, examples, shared)
                output.per_example.sum().backward()
                found.append(output.per_example.detach())
            optimizer.step()
            optimizer.zero_grad()
            if step.epoch == int(step.epoch):
                by_epoch.append(len(passes))
                passes.clear()
        return torch.cat(found), by_epoch

    (kept, once), (asked, always) = losses(True), losses(False)
    assert torch.equal(kept, asked)
    assert not torch.equal(kept[:5], kept[5:10])
    assert always[0] > 0
    assert always == [always[0]] * 3
    assert once == [always[0], 0, 0]
