"""What stands between raw rewards and the scores that training uses: scale, limits, penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from penchant.methods.online import RewardOptions
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


def penalties(sample: Sample, options: RewardOptions) -> dict[str, float]:
    """What each penalty in use adds to a normalised and clipped reward, in its units: at most 0.

    Args:
        sample: the answer.
        options: `length_penalty`, `length_budget`, `overlong_penalty`, `overlong_buffer`,
            `max_completion_length`, `missing_eos_penalty`, `ngram_repetition_penalty`.
    """
    num = len(sample.completion_ids)
    charged = {}
    if options.length_penalty:
        assert options.length_budget is not None, "options refuse a penalty without a budget"
        charged["length_penalty"] = -options.length_penalty * max(0, num - options.length_budget)
    if options.overlong_buffer and options.overlong_penalty:
        charged["overlong_penalty"] = options.overlong_penalty * overlong(
            num, options.overlong_buffer, options.max_completion_length
        )
    if options.missing_eos_penalty:
        charged["missing_eos_penalty"] = 0.0 if sample.ended else -options.missing_eos_penalty
    if options.ngram_repetition_penalty:
        share = repeated_share(sample.completion_ids)
        charged["ngram_repetition_penalty"] = -options.ngram_repetition_penalty * share
    return charged


def overlong(num_tokens: int, buffer: int, longest: int) -> float:
    """0 up to `longest - buffer` tokens, then linear to -1 at `longest`.

    DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476), Eq. 13.
    """
    return max(-1.0, min(0.0, (longest - buffer - num_tokens) / buffer))


def repeated_share(ids: Sequence[int], n: int = NGRAM) -> float:
    """The share of n-grams that repeat an earlier one; 0 where there are none."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def clip(value: float, limit: float | None) -> float:
    """Within `limit` of 0, where there is one; NaN stays NaN."""
    return value if limit is None or math.isnan(value) else max(-limit, min(limit, value))
