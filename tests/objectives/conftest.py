"""Planned scorers, and evaluations without a progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from penchant.core.evaluation import Evaluation
from penchant.core.team import ALONE, Team
from penchant.data.source import DatasetSource
from penchant.data.tokenise import TokenisedPair
from penchant.models.scoring import PLAIN, Scorer, ScoringPlan

PLANS = {
    "packed": ScoringPlan(packed=True, fused_head=True, kernel="sdpa"),
    "padded": ScoringPlan(packed=False, fused_head=True, kernel="sdpa"),
    "plain": PLAIN,
}


@pytest.fixture(scope="session")
def scorer_for() -> Callable[..., Any]:
    """Return a function that makes a scorer of a model, in one of three layouts."""

    def make(
        model: Any, layout: str = "packed", *, kind: type[Scorer] = Scorer, pad: int = 0
    ) -> Any:
        scorer = kind(model, pad)
        scorer.use(PLANS[layout])
        return scorer

    return make


@pytest.fixture(scope="session")
def quietly() -> Callable[..., Evaluation]:
    """Return a function that evaluates an objective without a progress bar."""

    def evaluate(objective: Any, examples: Sequence[Any], batch_size: int = 2) -> Evaluation:
        found = objective.evaluate(
            examples, batch_size=batch_size, progress=lambda items, description: items
        )
        assert isinstance(found, Evaluation)
        return found

    return evaluate


@pytest.fixture(scope="session")
def pairs() -> list[TokenisedPair]:
    """Return pairs of all lengths, also of one token."""
    return [
        TokenisedPair([1, 5, 6, 7, 8], [9, 10, 11, 2], [12, 13, 2], "f:1"),
        TokenisedPair([1], [14, 2], [15, 16, 17, 18, 19, 20, 2], "f:2"),
        TokenisedPair([1, 21, 22], [24, 25, 2], [24, 26, 2], "f:3"),
        TokenisedPair([1, 30], [31], [32, 33], "f:4"),
        TokenisedPair([1, 40, 41, 42], [43, 44, 45, 2], [2], "f:5"),
    ]


@pytest.fixture(scope="session")
def one_step() -> Callable[..., Any]:
    """Return a function that gives the one step of a pass over examples, in their order."""

    def step_of(examples: Sequence[Any], *, micro_batch_size: int, team: Team = ALONE) -> Any:
        source = DatasetSource(
            examples,
            micro_batch_size=micro_batch_size,
            accumulation=math.ceil(len(examples) / micro_batch_size / team.size),
            num_epochs=1,
            max_steps=None,
            shuffle=False,
            seed=0,
            team=team,
        )
        (step,) = source.steps()
        return step

    return step_of
