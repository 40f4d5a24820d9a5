"""The line that a step prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from penchant.training import progress


def test_a_loss_just_below_zero_is_written_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=written, width=200))
    with progress.TrainingProgress(2, 0, shown=True) as shown:
        shown.update(1, {"loss": -1e-9, "reward/mean": -0.25, "kl/sequence": -0.001}, 61.0)
        shown.update(2, {"loss": -0.0125}, 0.0)
    assert written.getvalue().splitlines() == [
        "step 1/2  loss 0.0000  reward -0.250  KL 0.00  left 1:01",
        "step 2/2  loss -0.0125  left 0:00",
    ]
