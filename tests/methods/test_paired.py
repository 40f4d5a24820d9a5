"""What DPO's family shares, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from penchant.methods.base import Needs
from penchant.methods.dpo import DPOOptions, dpo_loss
from penchant.methods.paired import DivergenceOptions, needs, scores


@pytest.mark.parametrize(
    ("divergence", "chosen", "rejected"),
    [
        ("reverse_kl", [2, -1], [-1, 1]),
        # 1 - e^-2, 1 - e^1; 1 - e^-1
        ("forward_kl", [0.864665, -1.718282], [-1.718282, 0.632121]),
        # log 2 - log(1 + e^-2), log 2 - log(1 + e^1); log 2 - log(1 + e^-1)
        ("js_divergence", [0.566219, -0.620115], [-0.620115, 0.379885]),
        # alpha 0.5: (e^-1 - 1) / -0.5, (e^0.5 - 1) / -0.5; (e^-0.5 - 1) / -0.5
        ("alpha_divergence", [1.264241, -1.297443], [-1.297443, 0.786939]),
    ],
)
def test_scores_of_divergences_by_hand(pairs, divergence, chosen, rejected):
    """Of log-ratios 2 and -1; -1 and 1."""
    found = scores(pairs, DivergenceOptions(f_divergence_type=divergence))
    assert found[0].tolist() == pytest.approx(chosen, abs=1e-6)
    assert found[1].tolist() == pytest.approx(rejected, abs=1e-6)


@pytest.mark.parametrize(("alpha", "same"), [(1.0, "reverse_kl"), (0.0, "forward_kl")])
def test_alpha_divergence_has_both_kls_as_limits(pairs, alpha, same):
    found = scores(
        pairs,
        DivergenceOptions(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha),
    )
    torch.testing.assert_close(found, scores(pairs, DivergenceOptions(f_divergence_type=same)))


def test_gradient_under_forward_kl_by_hand(worked):
    """Scores differ by 0.864665 + 1.718282 = 2.582947 and -1.718282 - 0.632121 = -2.350402.

    By the log-ratio a score changes by e^-r: 0.135335 and 2.718282; 2.718282 and 0.367879.
    sigmoid(-1.291473) = 0.215603 and sigmoid(1.175201) = 0.764084, times beta 0.5 and those:
    """
    _, chosen, rejected = worked("dpo", beta=0.5, f_divergence_type="forward_kl")
    assert chosen == [-0.014589, -1.038498]
    assert rejected == [0.293036, 0.140545]


def test_rewards_are_beta_times_the_scores(pairs):
    metrics = dpo_loss(pairs, DPOOptions(beta=0.5, f_divergence_type="forward_kl")).metrics
    assert metrics["reward/chosen"].tolist() == pytest.approx([0.432332, -0.859141], abs=1e-6)


def test_wpo_weights_a_pairs_loss_by_both_completions(pairs, worked):
    """0.201413 * 0.5 * 0.4 = 0.040283; 1.313262 * 1 * 0.1 = 0.131326."""
    weighted = replace(
        pairs, chosen_weight=torch.tensor([0.5, 1.0]), rejected_weight=torch.tensor([0.4, 0.1])
    )
    losses, _, _ = worked("dpo", weighted, beta=0.5, use_weighting=True)
    assert losses == [0.040283, 0.131326]
    losses, _, _ = worked("dpo", weighted, beta=0.5)
    assert losses == [0.201413, 1.313262]


def test_the_sft_term_is_a_mean_over_the_batchs_tokens_and_is_not_weighted(pairs, worked):
    """0.5 * 10 / 4.5 = 1.111111 and 0.5 * 7 / 4.5 = 0.777778, behind losses weighted by 0.2."""
    weights = {"chosen_weight": torch.full((2,), 0.5), "rejected_weight": torch.full((2,), 0.4)}
    losses, _, _ = worked(
        "dpo", replace(pairs, **weights), beta=0.5, use_weighting=True, rpo_alpha=0.5
    )
    assert losses == [0.2 * 0.201413 + 1.111111, 0.2 * 1.313262 + 0.777778]


def test_the_sft_term_has_a_metric_and_counts_every_token_of_a_weighted_sum(pairs):
    whole = replace(pairs, chosen_nll=torch.tensor([12.0, 9.0]))
    nll = dpo_loss(whole, DPOOptions(rpo_alpha=0.5)).metrics["nll"]
    assert nll.tolist() == pytest.approx([12 / 4.5, 9 / 4.5])


def test_options_say_what_inputs_they_need():
    assert needs(DPOOptions()) == Needs()
    assert needs(DPOOptions(use_weighting=True)) == Needs(weights=True)
    assert needs(DPOOptions(ld_alpha=0.0)) == Needs(tail_weight=0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0},
        {"ld_alpha": -0.1},
        {"ld_alpha": 1.1},
        {"rpo_alpha": -1},
        {"f_divergence_type": "chi_squared"},
        {"f_alpha_divergence_coef": float("nan")},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        DivergenceOptions(**options)
