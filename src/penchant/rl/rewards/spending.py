"""What a run has asked of its judges and services, in all its processes.

A run that is resumed counts on from its checkpoint: what it asked between that and its interruption
is in no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from penchant.core.asking import Usage

if TYPE_CHECKING:
    from penchant.core.team import Team
    from penchant.rl.rewards.judging import Rewards


class Spending:
    """Counts what a run asks from now on; each process calls every method.

    Args:
        rewards: of this process. Runs that follow each other on one setup share them.
        team: the processes of the run.
    """

    def __init__(self, rewards: Rewards, team: Team) -> None:
        self.rewards, self.team = rewards, team
        self._at_start = rewards.usage()
        self._before: dict[str, Usage] = {}

    def total(self) -> dict[str, Usage]:
        """What was asked of each judge and service, by name."""
        nothing = Usage()
        total, now = dict(self._before), self.rewards.usage()
        own = {name: usage - self._at_start.get(name, nothing) for name, usage in now.items()}
        for part in self.team.gather(own):
            for name, usage in part.items():
                total[name] = total.get(name, nothing) + usage
        return total

    def described(self) -> dict[str, str]:
        """The same in words."""
        return {name: str(usage) for name, usage in self.total().items()}

    def state(self) -> dict[str, Any]:
        """What goes on after an interruption, as JSON."""
        return {name: asdict(usage) for name, usage in self.total().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, in a process that has asked nothing of the run's yet."""
        self._before = {name: Usage(**counts) for name, counts in state.items()}
