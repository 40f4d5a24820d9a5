"""The rewards that a run names, found, loaded and made one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.errors import ConfigError
from penchant.models.load import resolve
from penchant.rl.rewards.attempts import OnError
from penchant.rl.rewards.functions import FunctionReward, load_function
from penchant.rl.rewards.judging import Normalization, Rewards, Scores, checked_weights
from penchant.rl.rewards.loading import ENSEMBLE, load_model_reward
from penchant.rl.rewards.models import (
    Autocast,
    Combination,
    EnsembleReward,
    ModelContext,
    ModelReward,
)
from penchant.rl.rewards.ready import NAMES, ready
from penchant.rl.rewards.samples import Reward, Sample
from penchant.rl.rewards.shaping import Penalties

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = ["Reward", "Rewards", "Sample", "Scores", "make_rewards"]

Spec = str | Callable[..., Any]


def find_rewards(specs: Sequence[Spec], timeout: float | None = None) -> list[Spec]:
    """Import the functions among what a run names, before a model takes its time to load.

    Args:
        specs, timeout: as for `make_rewards`, which takes what this returns.

    Raises:
        UserError: a function cannot be imported, or a name stands for nothing.
    """
    found: list[Spec] = []
    for spec in specs:
        function = _function(spec, timeout)
        if function is None and not (Path(str(spec)) / ENSEMBLE).exists():
            resolve(str(spec))
        found.append(function or spec)
    return found


def make_rewards(
    specs: Sequence[Spec],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_completion_length: int,
    weights: Sequence[float] | None = None,
    normalization: Normalization = "auto",
    score_clip: float | None = None,
    length_penalty: float = 0.0,
    length_budget: int | None = None,
    overlong_buffer: int = 0,
    overlong_penalty: float = 1.0,
    missing_eos_penalty: float = 0.0,
    ngram_repetition_penalty: float = 0.0,
    policy: PeftModel | None = None,
    base: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    autocast: Autocast = nullcontext,
    on_error: OnError = "raise",
    timeout: float | None = None,
    ensemble: Combination = "mean",
    ensemble_k: float = 1.0,
    batch_size: int = 8,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> Rewards:
    """Find and load what a run names as its rewards.

    Args:
        specs: each a callable, a ready function's short name, `package.module:function`,
            `path/to/file.py:function`, or the folder, run, ensemble or hub id of a reward model.
        tokenizer, policy, base, device, dtype, autocast, batch_size, max_length,
            trust_remote_code: as for `ModelContext`.
        weights, normalization, score_clip, on_error: as for `Rewards`.
        max_completion_length, length_penalty, length_budget, overlong_buffer, overlong_penalty,
            missing_eos_penalty, ngram_repetition_penalty: as for `Penalties`.
        timeout: seconds that one call of a function may take, None for no limit.
        ensemble, ensemble_k: how the members of an ensemble are combined.

    Raises:
        UserError: a reward cannot be found, or an option does not fit.
    """
    if not specs:
        raise ConfigError(f"reward names nothing; give a reward model, a function or {_listed()}")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"reward_timeout must be above 0 seconds, got {timeout}")
    penalties = Penalties(
        length_penalty=length_penalty,
        length_budget=length_budget,
        overlong_penalty=overlong_penalty,
        overlong_buffer=overlong_buffer,
        max_completion_length=max_completion_length,
        missing_eos_penalty=missing_eos_penalty,
        ngram_repetition_penalty=ngram_repetition_penalty,
    )
    checked_weights(weights, len(specs))  # before a model loads
    context = ModelContext(
        tokenizer, policy, base, device, dtype, autocast, batch_size, max_length, trust_remote_code
    )
    rewards: list[FunctionReward | ModelReward | EnsembleReward] = []
    for spec in specs:
        reward: FunctionReward | ModelReward | EnsembleReward | None = _function(spec, timeout)
        if reward is None:
            assert isinstance(spec, str), "a callable is a function"
            reward = load_model_reward(spec, context, combination=ensemble, k=ensemble_k)
        reward.name = _unused(reward.name, [one.name for one in rewards])
        rewards.append(reward)
    return Rewards(
        rewards,
        weights=weights,
        normalization=normalization,
        score_clip=score_clip,
        penalties=penalties,
        on_error=on_error,
    )


def _function(spec: Spec, timeout: float | None) -> FunctionReward | None:
    """The function that a spec means; None where it means a model."""
    if isinstance(spec, FunctionReward):
        return spec
    if not isinstance(spec, str):
        name = getattr(spec, "__name__", type(spec).__name__)
        return FunctionReward(spec, name, timeout=timeout)
    if known := ready(spec):
        return FunctionReward(known[1], known[0], timeout=timeout)
    if Path(spec).exists() or (":" not in spec and spec.count("/") == 1):
        return None
    if ":" not in spec:
        raise ConfigError(
            f"reward {spec!r} is no folder, no hub id (owner/name), no function "
            f"(package.module:function or file.py:function), and not {_listed()}"
        )
    return FunctionReward(load_function(spec), spec.rpartition(":")[2], timeout=timeout)


def _unused(name: str, taken: Collection[str]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found


def _listed() -> str:
    return f"one of {', '.join(NAMES)}"
