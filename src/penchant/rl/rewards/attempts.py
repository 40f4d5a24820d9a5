"""Call a reward so that what fails ends in one clear error, or in dropped samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

from penchant.core.errors import RewardError, UserError
from penchant.core.team import ALONE, Team
from penchant.rl.rewards.functions import RewardTimeoutError
from penchant.rl.rewards.samples import MissingScoresError, Reward, Sample

OnError = Literal["raise", "drop"]
NAN = float("nan")


def attempt(
    reward: Reward, samples: Sequence[Sample], on_error: OnError, team: Team = ALONE
) -> list[float]:
    """Score samples; what raises, takes too long or is not finite is an error or NaN.

    Where the whole batch raises, samples are tried one by one to find those at fault.

    Args:
        reward: what to call.
        samples: at least one.
        on_error: `raise`, or `drop` for NaN in place of a failed sample's score.
        team: the processes that each score a share of a batch; all of them call this.

    Returns:
        One number a sample, finite or NaN.

    Raises:
        RewardError: a sample failed and `on_error` is `raise`, or every sample of the batch failed.
        UserError: the reward cannot be called as it is, whatever the sample.
    """
    # Weights that processes divide are opened by all of them, once: one tries again what failed.
    with getattr(reward, "ready", nullcontext)():
        scores, reasons = _scores(reward, samples, on_error)
    for i, score in enumerate(scores):
        if not math.isfinite(score):
            reasons.setdefault(i, f"it gave {score}: not a finite number")
            scores[i] = NAN
    if reasons and on_error == "raise":
        raise _failure(reward, samples, reasons, on_error)
    if on_error == "drop":
        every = len(reasons) == len(samples)
        failures = team.gather(_failure(reward, samples, reasons, on_error) if every else None)
        if failures[0] is not None and None not in failures:
            raise failures[0]
    return scores


def _scores(
    reward: Reward, samples: Sequence[Sample], on_error: OnError
) -> tuple[list[float], dict[int, str]]:
    """Scores, and why there is none, by the sample's index."""
    try:
        return reward(samples), {}
    except UserError:
        raise
    except MissingScoresError as error:
        return error.scores, error.reasons
    except Exception as error:
        if on_error == "raise" and isinstance(error, RewardTimeoutError):
            # To try again would take as long again.
            return [NAN] * len(samples), {0: f"{error}, from this sample on"}
        scored = _one_by_one(reward, samples, on_error)
        if not scored[1] and on_error == "raise":
            raise RewardError(
                f"reward {reward.name} raised {_described(error)} for {len(samples)} samples "
                f"together, the first {samples[0].describe()}, and for none of them alone"
            ) from error
        return scored


def _one_by_one(
    reward: Reward, samples: Sequence[Sample], on_error: OnError
) -> tuple[list[float], dict[int, str]]:
    scores, reasons = [NAN] * len(samples), {}
    for i, sample in enumerate(samples):
        try:
            (scores[i],) = reward([sample])
        except UserError:
            raise
        except Exception as error:
            reasons[i] = f"it raised {_described(error)}"
            if on_error == "raise":
                break
    return scores, reasons


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _failure(
    reward: Reward, samples: Sequence[Sample], reasons: dict[int, str], on_error: OnError
) -> RewardError:
    first = min(reasons)
    text = f"reward {reward.name} failed for {samples[first].describe()}: {reasons[first]}"
    if on_error == "drop":
        return RewardError(
            f"{text}; so did every other of {len(samples)} samples: correct the reward"
        )
    return RewardError(f"{text}; correct it, or leave such samples out with on_reward_error: drop")
