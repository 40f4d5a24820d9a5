"""What `adapt` turns, each within bounds: the hold on the reference, the rate, length's price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penchant.rl.rewards.make import Rewards

# A KL coefficient that starts from 0; rewards have deviation 1, so that this counts at once.
FIRST_COEFFICIENT = 0.2
# One deviation of the reward a nat: nothing pays for more.
LARGEST_COEFFICIENT = 1.0
# Upper end of what is usual for beta.
LARGEST_BETA = 0.5
# Each time; the strength found by hand is rarely further off than two doublings.
FACTOR = 2.0
# Of the learning rate that was asked for.
SMALLEST_RATE = 0.25
# Taken off a normalised reward for each token beyond the start's mean length, and at most.
FIRST_LENGTH_PENALTY, LARGEST_LENGTH_PENALTY = 0.02, 0.2


@dataclass
class Lever:
    """A number that may be turned while a run goes on.

    Attributes:
        name: the key that it stands for.
        get, put: read and set it.
        bound: what it is not turned beyond.
        first: what a raised number becomes at least.
        factor: each time; below 1 the number is lowered.
        kept: whether a checkpoint holds it by itself, with what others have made of it since.
    """

    name: str
    get: Callable[[], float]
    put: Callable[[float], None]
    bound: float
    first: float = 0.0
    factor: float = FACTOR
    kept: bool = False

    def turn(self) -> str:
        """Turn it once within its bound; tells from what to what, nothing where it stays."""
        before = self.get()
        if self.factor > 1:
            word, after = "raised", min(max(self.factor * before, self.first), self.bound)
            moved = after > before
        else:
            word, after = "lowered", max(self.factor * before, self.bound)
            moved = after < before
        if not moved:
            return ""
        self.put(after)
        return f"{self.name} {word} from {before:.3g} to {after:.3g}"


def strength_lever(key: str, options: Any, objective: Any, source: Any) -> Lever:
    """The key that holds the policy near its reference.

    Args:
        key: `init_kl_coef` or `beta`.
        options: of the method.
        objective: whose options are read by the loss.
        source: of batches; one that samples has a controller and estimates advantages.
    """
    if key == "init_kl_coef":
        controller = source.controller

        def put(value: float) -> None:
            controller.value = value

        largest = max(LARGEST_COEFFICIENT, options.init_kl_coef)
        return Lever(
            "init_kl_coef", lambda: controller.value, put, largest, FIRST_COEFFICIENT, kept=True
        )

    def set_beta(value: float) -> None:
        changed = objective.parts.options.with_beta(value)
        objective.parts = replace(objective.parts, options=changed)
        if hasattr(source, "reestimate"):
            source.reestimate(changed)

    largest = max(LARGEST_BETA, options.beta)
    return Lever("beta", lambda: objective.parts.options.beta, set_beta, largest, 0.01)


def rate_lever(scheduler: Any, start: float) -> Lever:
    """The learning rate: a stronger hold alone steepens a loss whose steps are too long already.

    Args:
        scheduler: whose base rates are lowered.
        start: the rate that was asked for.
    """

    def put(value: float) -> None:
        share = value / scheduler.base_lrs[0]
        scheduler.base_lrs = [rate * share for rate in scheduler.base_lrs]
        # The rates in force, which a checkpoint saves and a resumed run begins with.
        scheduler._last_lr = [rate * share for rate in scheduler._last_lr]
        for group in scheduler.optimizer.param_groups:
            group["lr"] *= share

    return Lever(
        "learning_rate", lambda: scheduler.base_lrs[0], put, start * SMALLEST_RATE, factor=0.5
    )


def length_lever(rewards: Rewards, budget: int) -> Lever:
    """The price of each token beyond `budget`."""

    def put(value: float) -> None:
        changed = {
            "length_penalty": value,
            "length_budget": rewards.options.length_budget or budget,
        }
        rewards.options = rewards.options.model_copy(update=changed)

    return Lever(
        "length_penalty",
        lambda: rewards.options.length_penalty,
        put,
        LARGEST_LENGTH_PENALTY,
        FIRST_LENGTH_PENALTY,
    )
