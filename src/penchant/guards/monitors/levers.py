"""What `adapt` turns: the hold on the reference, and the price of length, each within bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penchant.rl.rewards import Rewards

# A KL coefficient that starts from 0; rewards have deviation 1, so that this counts at once.
FIRST_COEFFICIENT = 0.2
# One deviation of the reward a nat: nothing pays for more.
LARGEST_COEFFICIENT = 1.0
# Upper end of what is usual for beta.
LARGEST_BETA = 0.5
# Each time; the strength found by hand is rarely further off than two doublings.
FACTOR = 2.0
# Taken off a normalised reward for each token beyond the start's mean length, and at most.
FIRST_LENGTH_PENALTY, LARGEST_LENGTH_PENALTY = 0.02, 0.2


@dataclass
class Lever:
    """A number that may be raised while a run goes on.

    Attributes:
        name: the key that it stands for.
        get, put: read and set it.
        first: what it becomes where it is 0.
        largest: its bound.
    """

    name: str
    get: Callable[[], float]
    put: Callable[[float], None]
    first: float
    largest: float

    def raise_once(self) -> tuple[float, float]:
        """Double it within its bound; returns what it was and what it is."""
        before = self.get()
        after = min(max(FACTOR * before, self.first), max(self.largest, before))
        if after != before:
            self.put(after)
        return before, after


def strength_lever(options: Any, objective: Any, source: Any, *, referenced: bool) -> Lever | None:
    """The key that holds the policy near its reference; None for methods without one.

    Args:
        options: of the method.
        objective: whose options are read by the loss.
        source: of batches; one that samples has a controller and estimates advantages.
        referenced: whether the method compares with a reference: elsewhere `beta` is another thing.
    """
    fields = type(options).model_fields
    if "init_kl_coef" in fields:
        controller = source.controller

        def put(value: float) -> None:
            controller.value = value

        largest = max(LARGEST_COEFFICIENT, options.init_kl_coef)
        return Lever("init_kl_coef", lambda: controller.value, put, FIRST_COEFFICIENT, largest)
    if "beta" not in fields or not referenced:
        return None

    def set_beta(value: float) -> None:
        changed = objective.parts.options.model_copy(update={"beta": value})
        objective.parts = replace(objective.parts, options=changed)
        if hasattr(source, "reestimate"):
            source.reestimate(changed)

    largest = max(LARGEST_BETA, options.beta)
    return Lever("beta", lambda: objective.parts.options.beta, set_beta, 0.01, largest)


def length_lever(rewards: Rewards, budget: int) -> Lever:
    """The price of each token beyond `budget`."""

    def put(value: float) -> None:
        kept = rewards.penalties.length_budget or budget
        rewards.penalties = replace(rewards.penalties, length_penalty=value, length_budget=kept)

    first, largest = FIRST_LENGTH_PENALTY, LARGEST_LENGTH_PENALTY
    return Lever("length_penalty", lambda: rewards.penalties.length_penalty, put, first, largest)
