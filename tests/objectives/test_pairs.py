"""Pairs: their inputs, and held-out numbers against a naive computation with full logits."""

from __future__ import annotations

import math

import pytest
import torch

from penchant.methods import METHODS
from penchant.models.lora import add_lora
from penchant.models.reference import AdapterReference, CachedReference, CopyReference
from penchant.objectives.base import Parts
from penchant.objectives.pairs import PairObjective, pair_inputs

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
