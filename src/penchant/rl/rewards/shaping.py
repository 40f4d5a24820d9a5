"""What stands between raw rewards and the scores that training uses: scale, limits, penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from penchant.core.errors import ConfigError
from penchant.rl.rewards.samples import Sample

NGRAM = 3
# A deviation below this share of the mean is rounding: the rewards are all equal.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of a reward model's scores in its own training."""

    mean: float
    std: float

    def normalise(self, score: float) -> float:
        """In deviations from the mean; only shifted where there is no deviation."""
        return (score - self.mean) / (self.std or 1.0)


@dataclass
class RunningStatistics:
    """Mean and deviation of everything seen, batch by batch.

    Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
    whose case of one value is Welford's: no large sums, so no cancellation.

    Attributes:
        num: values seen.
        mean: of them.
        squares: sum of their squared deviations from it.
    """

    num: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: Sequence[float]) -> None:
        """Take in finite values."""
        if not values:
            return
        num = len(values)
        mean = math.fsum(values) / num
        squares = math.fsum((value - mean) ** 2 for value in values)
        total, apart = self.num + num, mean - self.mean
        self.squares += squares + apart**2 * self.num * num / total
        self.mean += apart * num / total
        self.num = total

    @property
    def std(self) -> float:
        """Of all values seen, over their number; 0 before there are any."""
        return math.sqrt(self.squares / self.num) if self.num else 0.0

    def normalise(self, value: float) -> float:
        """In deviations from the mean; 0 where all values seen are equal."""
        std = self.std
        return (value - self.mean) / std if std > ROUNDING * abs(self.mean) else 0.0

    def state_dict(self) -> dict[str, float]:
        """As JSON holds it exactly."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        for field in fields(self):
            setattr(self, field.name, float(state[field.name]))


@dataclass(frozen=True)
class Penalties:
    """What is taken off a normalised and clipped reward, in its units; 0 switches one off.

    Args:
        length_penalty: for each token beyond `length_budget`.
        length_budget: tokens that are free.
        overlong_penalty: times the overlong form, which falls from 0 to -1 over the last
            `overlong_buffer` tokens before `max_completion_length` (DAPO, Yu et al. 2025,
            https://arxiv.org/abs/2503.14476, Eq. 13).
        overlong_buffer: tokens; 0 for no such penalty.
        max_completion_length: tokens that an answer may have.
        missing_eos_penalty: where the model did not end by itself.
        ngram_repetition_penalty: times the share of 3-grams that repeat an earlier one.

    Raises:
        ConfigError: a value is out of range, or one needs another.
    """

    length_penalty: float = 0.0
    length_budget: int | None = None
    overlong_penalty: float = 1.0
    overlong_buffer: int = 0
    max_completion_length: int = 0
    missing_eos_penalty: float = 0.0
    ngram_repetition_penalty: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(
                    f"{field.name} must be at least 0 and finite, got {value}: it is taken off"
                )
        if self.length_penalty and self.length_budget is None:
            raise ConfigError(
                f"length_penalty {self.length_penalty:g} needs length_budget, the tokens that are "
                "free; set it"
            )
        if self.overlong_buffer > self.max_completion_length:
            raise ConfigError(
                f"overlong_buffer {self.overlong_buffer} must be at most the longest answer, "
                f"{self.max_completion_length} tokens; lower it"
            )

    def of(self, sample: Sample) -> dict[str, float]:
        """What each penalty in use adds to a sample's score: at most 0."""
        num = len(sample.completion_ids)
        found = {}
        if self.length_penalty:
            assert self.length_budget is not None
            found["length_penalty"] = -self.length_penalty * max(0, num - self.length_budget)
        if self.overlong_buffer and self.overlong_penalty:
            found["overlong_penalty"] = self.overlong_penalty * overlong(
                num, self.overlong_buffer, self.max_completion_length
            )
        if self.missing_eos_penalty:
            found["missing_eos_penalty"] = 0.0 if sample.ended else -self.missing_eos_penalty
        if self.ngram_repetition_penalty:
            share = repeated_share(sample.completion_ids)
            found["ngram_repetition_penalty"] = -self.ngram_repetition_penalty * share
        return found


def overlong(num_tokens: int, buffer: int, longest: int) -> float:
    """DAPO Eq. 13: 0 up to `longest - buffer` tokens, then linear to -1 at `longest`."""
    return max(-1.0, min(0.0, (longest - buffer - num_tokens) / buffer))


def repeated_share(ids: Sequence[int], n: int = NGRAM) -> float:
    """The share of n-grams that repeat an earlier one; 0 where there are none."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def clip(value: float, limit: float | None) -> float:
    """Within `limit` of 0, where there is one; NaN stays NaN."""
    return value if limit is None or math.isnan(value) else max(-limit, min(limit, value))
