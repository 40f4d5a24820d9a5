"""DiscoPOP by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch


def test_loss_by_hand(worked):
    """Margins 1.5 and -1; over tau 3 and -2, whose sigmoids are 0.952574 and 0.119203.

    0.201413 * 0.047426 + 0.223130 * 0.952574 = 0.222100
    1.313262 * 0.880797 + 2.718282 * 0.119203 = 1.480744
    """
    losses, _, _ = worked("discopop", beta=0.5, discopop_tau=0.5)
    assert losses == [0.222100, 1.480744]


def test_gradient_by_hand(worked):
    """With tau 1 the loss is sigmoid(-m) (1 - log sigmoid(m)), so by m

    -sigmoid(m) sigmoid(-m) (1 - log sigmoid(m)) - sigmoid(-m)^2:
    -0.149146 * 1.201413 - 0.033279 = -0.212465; -0.196612 * 2.313262 - 0.534447 = -0.989262
    """
    _, chosen, rejected = worked("discopop", beta=0.5, discopop_tau=1)
    assert chosen == [-0.106233, -0.494631]
    assert rejected == [0.106233, 0.494631]


def test_it_pulls_an_untrained_policy_back_to_the_papers_local_optimum(worked, untrained):
    """At 0: -0.5 * 0.5 - 1 * 0.5 + (1 - log 2) 0.25 / 0.05 = 0.784264, times beta.

    With beta 0.05 the paper finds zero gradients at log-ratios of -2.3714 and 1.44012.
    """
    _, chosen, _ = worked("discopop", untrained, beta=0.05)
    assert chosen == [0.05 * 0.784264] * 2
    optima = replace(untrained, chosen=untrained.chosen + torch.tensor([-2.3714, 1.44012]))
    _, chosen, _ = worked("discopop", optima, beta=0.05)
    assert chosen == [pytest.approx(0, abs=1e-4)] * 2


def test_a_tau_over_1_is_cut_off_instead_of_infinite(worked, pairs):
    """-m (1 - 1 / 2) is 5e4 for a margin of -1e5: over the largest exponent."""
    far = replace(pairs, chosen=torch.full((2,), -1e5))
    losses, _, _ = worked("discopop", far, beta=1, discopop_tau=2)
    assert all(value < float("inf") for value in losses.expected)
