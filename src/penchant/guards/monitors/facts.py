"""What detectors know of a run beside its metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunFacts:
    """Of one run.

    Attributes:
        num_steps: optimizer steps in all.
        samples: whether the method samples its own answers.
        scores: whether a score head is trained (reward models).
        strength: the key that holds the policy near the reference, such as `beta`; empty where
            the method has none.
        sft: the key that adds a supervised term on the chosen answers; empty likewise.
        beta: the factor from log-ratios in nats to implicit rewards; None where there is none.
    """

    num_steps: int
    samples: bool = False
    scores: bool = False
    strength: str = ""
    sft: str = ""
    beta: float | None = None

    @property
    def hold(self) -> str:
        """What to do to stay nearer to the reference."""
        return f"raise {self.strength}" if self.strength else "lower learning_rate"
