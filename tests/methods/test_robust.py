"""Robust DPO by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from penchant.methods.dpo import DPOOptions, dpo_loss
from penchant.methods.robust import RobustOptions, robust_loss


def test_loss_by_hand(worked):
    """Margins 1.5 and -1; -log sigmoid is 0.201413 and 1.313262, flipped 1.701413 and 0.313262.

    (0.9 * 0.201413 - 0.1 * 1.701413) / 0.8 = 0.013913
    (0.9 * 1.313262 - 0.1 * 0.313262) / 0.8 = 1.438262
    """
    losses, _, _ = worked("robust", beta=0.5, label_smoothing=0.1)
    assert losses == [0.013913, 1.438262]


def test_gradient_by_hand(worked):
    """-beta (0.9 sigmoid(-m) + 0.1 sigmoid(m)) / 0.8, and its opposite.

    -0.5 (0.9 * 0.182426 + 0.1 * 0.817574) / 0.8 = -0.153713
    -0.5 (0.9 * 0.731059 + 0.1 * 0.268941) / 0.8 = -0.428029
    """
    _, chosen, rejected = worked("robust", beta=0.5, label_smoothing=0.1)
    assert chosen == [-0.153713, -0.428029]
    assert rejected == [0.153713, 0.428029]


def test_the_mean_over_flipped_labels_is_the_loss_of_the_right_ones(pairs):
    """0.9 of the pairs as they are and 0.1 flipped: the corrections cancel out."""
    flipped = type(pairs)(
        *(pairs.rejected, pairs.chosen, pairs.ref_rejected, pairs.ref_chosen),
        *(pairs.rejected_len, pairs.chosen_len),
    )
    options = RobustOptions(beta=0.5, label_smoothing=0.1)
    as_is = robust_loss(pairs, options).per_example
    mean = 0.9 * as_is + 0.1 * robust_loss(flipped, options).per_example
    torch.testing.assert_close(mean, dpo_loss(pairs, DPOOptions(beta=0.5)).per_example)


def test_without_smoothing_it_is_dpo(pairs):
    found = robust_loss(pairs, RobustOptions(label_smoothing=0)).per_example
    torch.testing.assert_close(found, dpo_loss(pairs, DPOOptions()).per_example)


@pytest.mark.parametrize("share", [-0.1, 0.5])
def test_impossible_shares_of_flipped_labels_are_refused(share):
    with pytest.raises(ValidationError):
        RobustOptions(label_smoothing=share)
