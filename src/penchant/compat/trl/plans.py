"""Models that a script holds: planned while the engine has them, as they came in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer, ScoringPlan
    from penchant.training.setup import Setup


def set_aside(setup: Setup) -> list[tuple[Scorer, ScoringPlan]]:
    """The plans of the policy and of a reference beside it, which have none from now on."""
    from penchant.models.scoring import PLAIN

    with ExitStack() as stack:
        other = setup.reference and stack.enter_context(setup.reference.active())
    scorers = [setup.scorer, *([other] if other and other is not setup.scorer else [])]
    plans = [(scorer, scorer.plan) for scorer in scorers]
    for scorer in scorers:
        scorer.use(PLAIN)
    return plans


@contextmanager
def planned(plans: Sequence[tuple[Scorer, ScoringPlan]]) -> Iterator[None]:
    """The engine's own attention for a while; outside, the models can generate as ever."""
    from penchant.models.scoring import PLAIN

    for scorer, plan in plans:
        scorer.use(plan)
    try:
        yield
    finally:
        for scorer, _ in plans:
            scorer.use(PLAIN)
