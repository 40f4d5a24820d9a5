"""What the guard of a run knows of its method."""

from __future__ import annotations

from typing import Any

import pytest

from penchant.guards.monitors.make import reported_beta
from penchant.methods import METHODS


@pytest.mark.parametrize(
    ("method", "keys", "beta"),
    [
        ("dpo", {"beta": 0.3}, 0.3),
        ("simpo", {}, None),
        ("mpo", {"losses": {"sft": 1, "dpo": 0.2}}, None),
        ("mpo", {"losses": {"simpo": 1, "dpo": 0.2}}, None),
        ("mpo", {"losses": {"dpo": 1, "sft": 1}, "loss_options": {"dpo": {"beta": 0.5}}}, 0.5),
    ],
)
def test_reported_rewards_are_multiples_of_the_first_loss_beta(
    method: str, keys: dict[str, Any], beta: float | None
) -> None:
    assert reported_beta(METHODS[method], METHODS[method].options(**keys)) == beta
