"""Two pairs whose numbers are easy to work with, for the tests of DPO's family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from penchant.methods import METHODS, PairInputs
from penchant.methods.base import LossOutput
from penchant.models.load import load_causal_model


@pytest.fixture
def pairs() -> PairInputs:
    """Log-ratios: chosen -10 - -12 = 2 and -7 - -6 = -1; rejected -9 - -8 = -1 and -4 - -5 = 1."""
    return PairInputs(
        chosen=torch.tensor([-10.0, -7.0]),
        rejected=torch.tensor([-9.0, -4.0]),
        ref_chosen=torch.tensor([-12.0, -6.0]),
        ref_rejected=torch.tensor([-8.0, -5.0]),
        chosen_len=torch.tensor([5, 4]),
        rejected_len=torch.tensor([4, 2]),
    )


@pytest.fixture
def worked(pairs: PairInputs) -> Callable[..., tuple[Any, Any, Any]]:
    """Return a function that gives a method's losses on the pairs, and their gradients.

    The gradients are by the chosen and by the rejected log-probs. All are lists, to compare with
    what was worked by hand to six digits.
    """

    def work(method: str, inputs: PairInputs = pairs, **options: Any) -> tuple[Any, Any, Any]:
        spec = METHODS[method]
        chosen = inputs.chosen.clone().requires_grad_()
        rejected = inputs.rejected.clone().requires_grad_()
        moved = replace(inputs, chosen=chosen, rejected=rejected)
        losses = spec.loss(moved, spec.options(**options)).per_example
        gradients = torch.autograd.grad(losses.sum(), (chosen, rejected))
        return tuple(
            pytest.approx(found.tolist(), abs=2e-6) for found in (losses.detach(), *gradients)
        )

    return work


@pytest.fixture
def untrained(pairs: PairInputs) -> PairInputs:
    """Return the pairs of a policy that is its reference."""
    return replace(pairs, ref_chosen=pairs.chosen, ref_rejected=pairs.rejected)


@pytest.fixture
def equals_trls_cpo() -> Callable[..., None]:
    """Return a function that compares losses and rewards with those of TRL's CPO trainer."""
    trl = pytest.importorskip("trl.experimental.cpo")

    def compare(found: LossOutput, chosen: Any, rejected: Any, **attributes: Any) -> None:
        trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **attributes)
        ours = (found.per_example, found.metrics["reward/chosen"], found.metrics["reward/rejected"])
        torch.testing.assert_close(ours, trl.CPOTrainer.cpo_loss(trainer, chosen, rejected))

    return compare


@pytest.fixture(scope="module")
def models(tiny_model_dir: Path) -> tuple[Any, Any]:
    """Return a policy that differs from its reference by a nat or so a completion, and that."""
    reference = load_causal_model(str(tiny_model_dir), dtype=torch.float32)
    policy = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy, reference
