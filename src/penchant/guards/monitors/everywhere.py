"""What several processes do each for itself, where all have to know that it failed in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from penchant.core.errors import TrainingError
from penchant.core.team import Team

T = TypeVar("T")


class OutOfStepError(TrainingError):
    """One process failed where others wait for it: no monitor can be given up, the run ends."""


def everywhere(team: Team, action: Callable[[], T], *, in_step: bool = False) -> T:
    """What an action returns; where it fails in one process, every process raises.

    Args:
        team: the processes, all of which call this.
        action: of each process.
        in_step: whether processes wait for each other within it, so that the others could not
            hear of a failure.

    Raises:
        TrainingError: the action failed in another process.
        OutOfStepError: it failed in this one, in step with others.
    """
    if team.size == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    text = "" if error is None else f"{type(error).__name__}: {error}"
    if error is not None and in_step:
        raise OutOfStepError(
            f"monitored answers failed in process {team.rank}, in step with the others: {text}; "
            "monitor_prompts 0 switches monitors off"
        ) from error
    told = team.gather(text)
    if error is not None:
        raise error
    for rank, other in enumerate(told):
        if other:
            raise TrainingError(f"process {rank}: {other}")
    return cast("T", result)
