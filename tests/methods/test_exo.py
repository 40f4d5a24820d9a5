"""EXO by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from penchant.methods.exo import EXOOptions


def test_loss_by_hand(worked):
    """Margins 1.5 and -1, label smoothing 0.1: log 0.9 = -0.105361, log 0.1 = -2.302585.

    0.817574 (-0.201413 + 0.105361) + 0.182426 (-1.701413 + 2.302585) = 0.031140
    0.268941 (-1.313262 + 0.105361) + 0.731059 (-0.313262 + 2.302585) = 1.129458
    """
    losses, _, _ = worked("exo", beta=0.5, label_smoothing=0.1)
    assert losses == [0.031140, 1.129458]


def test_gradient_by_hand(worked):
    """beta sigmoid(m) sigmoid(-m) (m - log 9), with log 9 = 2.197225.

    0.5 * 0.149146 (1.5 - 2.197225) = -0.051994; 0.5 * 0.196612 (-1 - 2.197225) = -0.314306
    """
    _, chosen, rejected = worked("exo", beta=0.5, label_smoothing=0.1)
    assert chosen == [-0.051994, -0.314306]
    assert rejected == [0.051994, 0.314306]


def test_the_loss_is_0_at_its_target_margin(worked, untrained):
    """beta * margin = log(0.8 / 0.2) = log 4."""
    there = replace(untrained, chosen=untrained.chosen + math.log(4))
    losses, chosen, _ = worked("exo", there, beta=1, label_smoothing=0.2)
    assert losses == [0, 0]
    assert chosen == [0, 0]


@pytest.mark.parametrize("share", [0, 0.5])
def test_impossible_smoothing_is_refused(share):
    """At 0 the loss of every margin would be infinite."""
    with pytest.raises(ValidationError):
        EXOOptions(label_smoothing=share)
