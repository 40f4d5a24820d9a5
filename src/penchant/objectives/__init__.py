"""From examples to a method's inputs, losses and evaluations: one module a kind of data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penchant.objectives.base import Objective
from penchant.objectives.labels import LabelObjective
from penchant.objectives.pairs import PairObjective
from penchant.objectives.rollouts import RolloutObjective
from penchant.objectives.scores import ScoreObjective

if TYPE_CHECKING:
    from penchant.methods import Method


def objective_of(method: Method) -> type[Any]:
    """The objective that gives a method its inputs."""
    if method.model == "score":
        return ScoreObjective
    kinds = {"pairs": PairObjective, "labels": LabelObjective, "prompts": RolloutObjective}
    return kinds[method.data]


__all__ = [
    "LabelObjective",
    "Objective",
    "PairObjective",
    "RolloutObjective",
    "ScoreObjective",
    "objective_of",
]
