"""Scores of a reward model: held-out numbers, calibration, and what a normalisation needs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from penchant.config.keys import load_config
from penchant.methods import METHODS
from penchant.models.reward_scorer import RewardScorer
from penchant.objectives import scores as scores_module
from penchant.objectives.base import Parts
from penchant.objectives.scores import ScoreObjective, calibration_error, score_statistics

REWARD = METHODS["reward"]


def logit(p):
    return math.log(p / (1 - p))


@pytest.fixture
def objective(make_score_model, scorer_for):
    """A reward model."""

    def make(layout="packed", **options):
        scorer = scorer_for(make_score_model(), layout, kind=RewardScorer)
        return ScoreObjective(Parts(scorer, None, REWARD, REWARD.options(**options)))

    return make


@pytest.fixture
def expected(make_score_model, pairs):
    """`[pairs, 2]`, by transformers alone, one text at a time."""
    model = make_score_model()
    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor([[*pair.prompt, *completion]])).logits.item()
            for pair in pairs
            for completion in (pair.chosen, pair.rejected)
        ]
    return torch.tensor(rows).view(-1, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("layout", ["packed", "padded", "plain"])
def test_every_number_equals_the_naive_computation(
    layout, batch_size, objective, expected, pairs, quietly
):
    margins = expected[:, 0] - expected[:, 1]
    assert 0 < (margins > 0).sum() < len(pairs)
    found = quietly(objective(layout), pairs, batch_size)
    approx = {"abs": 1e-6, "rel": 1e-5}
    assert found.num_examples == len(pairs)
    losses = -torch.nn.functional.logsigmoid(margins)
    assert found.loss == pytest.approx(losses.mean().item(), **approx)
    assert found.accuracy == pytest.approx((margins > 0).double().mean().item())
    assert found.margin == pytest.approx(margins.mean().item(), **approx)
    assert found.reward_chosen == pytest.approx(expected[:, 0].mean().item(), **approx)
    assert found.reward_rejected == pytest.approx(expected[:, 1].mean().item(), **approx)
    assert found.score_mean == pytest.approx(expected.mean().item(), **approx)
    assert found.score_std == pytest.approx(expected.std(correction=0).item(), **approx)
    assert found.calibration_error == pytest.approx(calibration_error(margins), **approx)
    assert found.kl is found.logprob_accuracy is found.logprob_chosen is None


def test_margins_that_the_data_state_reach_the_loss(objective, expected, pairs):
    stated = [0.0, 1.0, -0.5, 2.0, 0.25]
    examples = [replace(p, margin=m) for p, m in zip(pairs, stated, strict=True)]
    one = objective(use_margins=True)
    output, tokens = one(one.parts.scorer, examples, None)
    wanted = expected[:, 0] - expected[:, 1] - torch.tensor(stated)
    losses = -torch.nn.functional.logsigmoid(wanted)
    torch.testing.assert_close(output.per_example, losses, rtol=1e-5, atol=1e-6)
    assert tokens == sum(pair.group().num_tokens for pair in pairs)


def test_evaluating_leaves_no_gradients_and_the_mode_as_it_was(objective, pairs, quietly):
    one = objective()
    one.parts.scorer.train()
    quietly(one, pairs)
    assert one.parts.scorer.training
    assert all(p.grad is None for p in one.parts.scorer.parameters())


def test_calibration_error_is_the_gap_between_stated_and_found_shares():
    """Worked by hand: five pairs.

    Two are stated at 0.62, of which one is right: a gap of 0.12 for 2 of 5. Two are stated at
    0.93, both right: 0.07 for 2 of 5. One is undecided, stated at 0.5 and half right: no gap.
    """
    margins = torch.tensor([logit(0.62), -logit(0.62), logit(0.93), logit(0.93), 0.0])
    assert calibration_error(margins) == pytest.approx(0.4 * 0.12 + 0.4 * 0.07, abs=1e-6)


@pytest.mark.parametrize(
    ("margins", "error"),
    [
        ([50.0, 60.0], 0.0),  # certain, and right
        ([-50.0, -60.0], 1.0),  # certain, and wrong
        ([0.0, 0.0, 0.0], 0.0),
        ([logit(0.75)] * 3 + [-logit(0.75)], 0.0),  # right as often as it says
    ],
)
def test_calibration_error_at_the_ends(margins, error):
    assert calibration_error(torch.tensor(margins)) == pytest.approx(error, abs=1e-6)


def test_statistics_are_of_the_scores_of_all_completions(objective, expected, pairs):
    config = load_config("reward", {"model": "m", "data": "d"})
    found = score_statistics(objective(), pairs, config)
    assert found["num"] == 10
    assert found["mean"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert found["std"] == pytest.approx(expected.std(correction=0).item(), abs=1e-6)


def test_statistics_of_much_data_are_of_a_sample_that_the_seed_decides(
    objective, pairs, monkeypatch
):
    monkeypatch.setattr(scores_module, "STATISTICS_PAIRS", 2)
    seeds = (0, 0, 1, 2)
    found = [
        score_statistics(
            objective(), pairs, load_config("reward", {"model": "m", "data": "d", "seed": seed})
        )
        for seed in seeds
    ]
    assert [one["num"] for one in found] == [4] * 4
    assert found[0] == found[1]
    assert len({one["mean"] for one in found}) > 1
