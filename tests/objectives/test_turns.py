"""Masked completions: losses by hand over the tokens that count, in every layout and reference."""

from __future__ import annotations

import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from penchant.data.batch import Turns, trained_spans
from penchant.data.tokenise import TokenisedPair
from penchant.data.tokenised import TokenisedLabel
from penchant.methods import METHODS
from penchant.models.reference_cache import CachedReference
from penchant.models.reference_copy import CopyReference
from penchant.objectives.base import Parts
from penchant.objectives.labels import LabelObjective
from penchant.objectives.pairs import PairObjective

PAIRS = [
    TokenisedPair([4, 5, 6], Turns([7, 8, 2, 9, 9, 10, 11, 2], ((0, 3), (5, 8))), [12, 2], "f:1"),
    TokenisedPair([4], Turns([20, 21, 2, 22], ((1, 3),)),
                  Turns([30, 2, 31, 32, 2], ((0, 2), (4, 5))), "f:2"),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tiny_model_dir):
    """Return a policy and another model as its reference."""
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return policy.eval(), reference.eval()


@torch.no_grad()
def by_hand(model, prompt, completion):
    """Sum of log-probs over the tokens that count, of a plain forward, and how many those are."""
    ids = torch.tensor([[*prompt, *completion]])
    logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    places = [len(prompt) + at for a, b in trained_spans(completion) for at in range(a, b)]
    return sum(logprobs[at - 1, ids[0, at]].item() for at in places), len(places)


def ratios(models, example, *, mean=False):
    sides = []
    for completion in (example.chosen, example.rejected):
        (own, num), (other, _) = (by_hand(one, example.prompt, completion) for one in models)
        sides.append((own - other) / (num if mean else 1))
    return sides[0] - sides[1]


def losses(scorer, reference, method, examples, **options):
    parts = Parts(scorer, reference, METHODS[method], METHODS[method].options(**options))
    objective = PairObjective(parts)
    step = SimpleNamespace(examples=examples, micro_batches=[(examples, 1.0)])
    output, _ = objective(scorer, examples, objective.prepare(scorer, step))
    return output.per_example.tolist()


@pytest.mark.parametrize("layout", ["packed", "padded", "plain"])
@pytest.mark.parametrize("kind", ["copy", "cache"])
def test_losses_are_of_the_tokens_that_count(models, scorer_for, tmp_path, layout, kind):
    policy, other = models
    scorer, twin = scorer_for(deepcopy(policy), layout), scorer_for(deepcopy(other), layout)
    reference = CopyReference(twin)
    if kind == "cache":
        reference = CachedReference(tmp_path, other, "fp32")
        groups = [one.group() for one in PAIRS]
        reference.fill(groups, twin, batch_size=1, progress=lambda items, _: items)
    dpo = [math.log1p(math.exp(-0.1 * ratios(models, one))) for one in PAIRS]
    assert losses(scorer, reference, "dpo", PAIRS, beta=0.1) == pytest.approx(dpo, abs=1e-5)
    # Means are over the tokens that count.
    ipo = [(ratios(models, one, mean=True) - 1 / (2 * 0.1)) ** 2 for one in PAIRS]
    assert losses(scorer, reference, "ipo", PAIRS, beta=0.1) == pytest.approx(ipo, abs=1e-4)
    own, num = by_hand(policy, PAIRS[0].prompt, PAIRS[0].chosen)
    assert num == 6
    more = losses(scorer, reference, "dpo", PAIRS[:1], beta=0.1, rpo_alpha=1.0)
    assert more[0] == pytest.approx(dpo[0] - own / num, abs=1e-5)


def test_a_cache_tells_masks_of_the_same_tokens_apart(models, scorer_for, tmp_path):
    _, other = models
    scorer = scorer_for(deepcopy(other))
    cached = CachedReference(tmp_path, other, "fp32")
    ids = [7, 8, 2, 9, 2]
    masks = (ids, Turns(ids, ((0, 3),)), Turns(ids, ((4, 5),)))
    for completion in masks:
        [group] = [TokenisedLabel([4, 5], completion, True, "f:1").group()]
        assert cached.fill([group], scorer, batch_size=1, progress=lambda items, _: items) == 1
        [value] = cached.sums([group], scorer.batch([group])).tolist()
        assert value == pytest.approx(by_hand(other, [4, 5], completion)[0], abs=1e-4)


def test_labels_and_their_mismatches_count_what_the_assistant_says(models, scorer_for):
    policy, other = models
    scorer = scorer_for(deepcopy(policy))
    examples = [TokenisedLabel(one.prompt, one.chosen, not n, one.where)
                for n, one in enumerate(PAIRS)]  # fmt: skip
    parts = Parts(scorer, CopyReference(scorer_for(deepcopy(other))), METHODS["kto"],
                  METHODS["kto"].options(), max_length=8)  # fmt: skip
    objective = LabelObjective(parts, examples)
    step = SimpleNamespace(examples=examples, micro_batches=[(examples, 1.0)])
    shared = objective.prepare(scorer, step)
    # Each meets the other's completion, cut to five and seven tokens.
    crossed = [(examples[0].prompt, examples[1].completion[:5]),
               (examples[1].prompt, examples[0].completion[:7])]  # fmt: skip
    divergences = [by_hand(policy, *one)[0] - by_hand(other, *one)[0] for one in crossed]
    assert float(shared.kl) == pytest.approx(max(sum(divergences) / 2, 0), abs=1e-5)
    output, _ = objective(scorer, examples, shared)
    sides = [[by_hand(one, e.prompt, e.completion)[0] for one in models] for e in examples]
    rewards = [0.1 * (own - reference) for own, reference in sides]
    chosen, rejected = output.metrics["reward/chosen"], output.metrics["reward/rejected"]
    assert float(chosen.nanmean()) == pytest.approx(rewards[0], abs=1e-5)
    assert float(rejected.nanmean()) == pytest.approx(rewards[1], abs=1e-5)
