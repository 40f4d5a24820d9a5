"""Supervised fine-tuning by hand."""

from __future__ import annotations

import pytest

from penchant.methods.sft import SFT, SFTOptions


def test_the_loss_is_a_mean_over_all_tokens_by_hand(pairs):
    """10 and 7 nats over (5 + 4) / 2 tokens; average log-probs of -2 and -2.25, -1.75 and -2."""
    found = SFT.loss(pairs, SFTOptions())
    assert found.per_example.tolist() == pytest.approx([10 / 4.5, 7 / 4.5])
    assert found.metrics["reward/margin"].tolist() == pytest.approx([0.25, 0.25])
