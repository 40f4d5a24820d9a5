"""What all objectives share: batches of like length, means, and scoring under two models."""

from __future__ import annotations

import pytest
import torch

from penchant.core.team import Team
from penchant.models.lora import add_lora
from penchant.models.reference import AdapterReference
from penchant.models.reference_copy import CopyReference
from penchant.objectives.held_out import Scored, TokenMeans, batches, mean, score_both


@pytest.mark.parametrize("batch_size", [1, 2, 3, 99])
def test_batches_hold_every_example_once_and_like_lengths_together(pairs, batch_size):
    described = []

    def progress(items, description):
        described.append(description)
        return items

    found = [batch for batch, counts in batches(pairs, batch_size, progress) if counts]
    assert described == ["evaluating"]
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    flat = [pair for batch in found for pair in batch]
    assert sorted(pair.where for pair in flat) == [pair.where for pair in pairs]
    lengths = [pair.group().num_tokens for pair in flat]
    assert lengths == sorted(lengths)


def test_processes_evaluate_equal_numbers_of_batches_which_are_those_of_one(pairs):
    def quiet(items, description):
        return items

    whole = list(batches(pairs, 2, quiet))
    shares = [list(batches(pairs, 2, quiet, Team(rank, 3))) for rank in range(3)]
    rounds = -(-len(whole) // 3)
    assert [len(share) for share in shares] == [rounds] * 3
    in_turn = [one for row in zip(*shares, strict=True) for one in row]
    assert in_turn[: len(whole)] == whole
    assert all(not counts for _, counts in in_turn[len(whole) :])


def test_means_leave_out_what_says_nothing():
    assert mean(torch.tensor([1.0, float("nan"), 4.0])) == 2.5
    assert mean(torch.tensor([[2.0, 4.0]])) == 3.0


def test_token_means_weigh_batches_by_their_tokens():
    """KL 1 over two tokens and 4 over one: 6 in 3 tokens."""
    means = TokenMeans()
    for kl in ([1.0, 1.0], [4.0]):
        values = torch.tensor(kl)
        means.add(Scored(torch.zeros(len(kl)), None, values, 2 * values))
    assert means.means() == {"kl": 2.0, "entropy": 4.0}


def test_token_means_of_nothing_compared_are_none():
    means = TokenMeans()
    means.add(Scored(torch.zeros(3), None, None, None))
    assert means.means() == {}


@pytest.mark.parametrize("policy_layout", ["packed", "padded", "plain"])
@pytest.mark.parametrize("layout", ["packed", "padded", "plain"])
def test_both_models_are_scored_right_in_every_mixture_of_layouts(
    policy_layout, layout, make_model, scorer_for, groups, plain_logprobs
):
    """They are compared over the whole vocabulary where one walk of both heads can do it."""
    policy = scorer_for(make_model(), policy_layout)
    reference = CopyReference(scorer_for(make_model(seed=1), layout))
    weights = torch.linspace(0, 1, 26)
    with torch.no_grad():
        ours, theirs = (plain_logprobs(make_model(seed=seed), groups).float() for seed in (0, 1))
        scored = score_both(policy, reference, groups, policy.batch(groups), weights)
    lengths = [len(c) for group in groups for c in group.completions]
    sums = torch.stack([part.sum() for part in (theirs * weights).split(lengths)])
    torch.testing.assert_close(scored.logprobs, ours, rtol=0, atol=1e-4)
    torch.testing.assert_close(scored.ref_sums, sums, rtol=0, atol=1e-4)
    exact = policy_layout == layout != "plain"
    assert (scored.kl is not None) == (scored.entropy is not None) == exact


def test_a_policy_without_a_reference_is_scored_alone(make_model, scorer_for, groups):
    policy = scorer_for(make_model())
    scored = score_both(policy, None, groups, policy.batch(groups))
    assert scored.ref_sums is scored.kl is scored.entropy is None
    assert len(scored.logprobs) == 26


@pytest.mark.parametrize("layout", ["packed", "padded", "plain"])
def test_a_policy_beside_its_own_model_is_scored_with_its_adapter_on(
    layout, make_model, scorer_for, groups, plain_logprobs
):
    adapted = add_lora(make_model(), r=2, alpha=8, dropout=0.0, target_modules="all-linear")
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        ours = plain_logprobs(adapted, groups).float()
        theirs = plain_logprobs(make_model(), groups).float()
        policy = scorer_for(adapted, layout)
        scored = score_both(policy, AdapterReference(policy), groups, policy.batch(groups))
    assert (ours - theirs).abs().max() > 0.1
    lengths = [len(c) for group in groups for c in group.completions]
    sums = torch.stack([part.sum() for part in theirs.split(lengths)])
    torch.testing.assert_close(scored.logprobs, ours, rtol=0, atol=1e-4)
    torch.testing.assert_close(scored.ref_sums, sums, rtol=0, atol=1e-4)
