"""What a finding during a run does: warn, adapt, rollback or stop; parsed before anything loads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from penchant.core.findings import DETECTED

Action = Literal["warn", "adapt", "rollback", "stop"]
ACTIONS: tuple[Action, ...] = get_args(Action)
# Where a stronger hold on the reference is a remedy; elsewhere it would do harm or nothing.
ADAPTABLE = ("reward-hacking", "drift", "collapse")


@dataclass(frozen=True)
class Actions:
    """The action of each finding.

    Attributes:
        default: where an id has none of its own.
        by_id: of single ids.
    """

    default: Action = "warn"
    by_id: Mapping[str, Action] = field(default_factory=dict)

    def of(self, name: str) -> Action:
        """The action for an id; where adapting is no remedy it is a warning."""
        action = self.by_id.get(name, self.default)
        return "warn" if action == "adapt" and name not in ADAPTABLE else action

    @property
    def acts(self) -> bool:
        """Whether any finding leads to more than a warning."""
        return any(self.of(name) != "warn" for name in DETECTED)

    def wants(self, action: Action) -> bool:
        """Whether any finding may lead to this action."""
        return any(self.of(name) == action for name in DETECTED)


def parse_actions(text: str) -> Actions:
    """Read `on_finding`: an action for all, or `id=action`, comma-separated.

    Raises:
        ValueError: an unknown id or action, or adapting where that is no remedy.
    """
    default: Action = "warn"
    by_id: dict[str, Action] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, named, word = item.rpartition("=")
        action = next((one for one in ACTIONS if one == word.strip()), None)
        if action is None:
            raise ValueError(
                f"on_finding: unknown action {word.strip()!r}; known are {', '.join(ACTIONS)}"
            )
        name = name.strip()
        if not named:
            default = action
            continue
        if name not in DETECTED:
            close = difflib.get_close_matches(name, list(DETECTED), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(DETECTED)}"
            raise ValueError(f"on_finding: unknown finding {name!r}; {hint}")
        if action == "adapt" and name not in ADAPTABLE:
            raise ValueError(
                f"on_finding: adapt holds the policy nearer to its reference, which does not help "
                f"against {name}, only against {', '.join(ADAPTABLE)}; use warn, rollback or stop"
            )
        by_id[name] = action
    return Actions(default, by_id)
