"""Which kind of data a method learns from, and the objective of a run on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penchant.objectives.base import Objective, Parts
from penchant.training.accelerator import team_of
from penchant.training.kinds import Pairs

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.methods import Method
    from penchant.models.reference import Reference
    from penchant.training.setup import Setup


def kind_of(method: Method) -> Pairs:
    """The kind of data that a method learns from."""
    if method.samples:
        from penchant.training.kind_prompts import Prompts

        return Prompts()
    if method.model == "score":
        from penchant.training.kind_scores import Scores

        return Scores()
    if method.data == "labels":
        from penchant.training.kind_labels import Labels

        return Labels()
    return Pairs()


def make_objective(
    config: RunConfig,
    accelerator: Accelerator,
    setup: Setup,
    *,
    reference: Reference | None = None,
) -> Objective:
    """The objective of a run's method on what is loaded.

    Args:
        config, accelerator, setup: of the run.
        reference: in place of the setup's.
    """
    parts = Parts(
        setup.scorer,
        reference or setup.reference,
        config.spec,
        config.options,
        team_of(accelerator),
        config.max_length,
    )
    return kind_of(config.spec).objective(parts, setup)
