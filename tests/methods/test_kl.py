"""Penalties and controllers by hand."""

from __future__ import annotations

import pytest
import torch

from penchant.methods.kl import AdaptiveKLController, FixedKLController, kl_penalty


def test_penalties_by_hand():
    policy, reference = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    exact = torch.tensor([0.7, 0.1])
    assert kl_penalty("kl", policy, reference).tolist() == [1, -2]
    assert kl_penalty("abs", policy, reference).tolist() == [1, 2]
    assert kl_penalty("mse", policy, reference).tolist() == [0.5, 2]
    assert torch.equal(kl_penalty("full", policy, reference, exact), exact)


def test_the_controller_moves_by_the_clipped_error():
    controller = AdaptiveKLController(0.2, target=6.0, horizon=10_000)
    controller.update(12.0, 64)  # 100% too far, clipped to 20%
    assert controller.value == pytest.approx(0.2 * (1 + 0.2 * 64 / 10_000))
    controller = AdaptiveKLController(0.2, target=6.0, horizon=100)
    controller.update(5.4, 10)  # 10% below
    assert controller.value == pytest.approx(0.2 * 0.99)
    controller.update(-50.0, 10)
    assert controller.value == pytest.approx(0.2 * 0.99 * 0.98)


def test_a_fixed_coefficient_stays():
    controller = FixedKLController(0.1)
    controller.update(1e9, 1000)
    assert controller.value == 0.1
