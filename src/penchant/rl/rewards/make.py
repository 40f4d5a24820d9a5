"""The rewards that a run names, found, loaded and made one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError, RewardError
from penchant.core.judge import PREFIX, read_settings
from penchant.methods.online import RewardOptions
from penchant.rl.rewards.functions import (
    FunctionReward,
    functions_in,
    load_function,
    require_columns,
)
from penchant.rl.rewards.judge import JudgeReward
from penchant.rl.rewards.judging import Rewards, Scores
from penchant.rl.rewards.loading import ENSEMBLE, find_scorer, load_model_reward
from penchant.rl.rewards.models import EnsembleReward, ModelContext, ModelReward
from penchant.rl.rewards.pairwise_judge import PairwiseJudgeReward, compares
from penchant.rl.rewards.ready import NAMES, ready
from penchant.rl.rewards.samples import Reward, Sample
from penchant.rl.rewards.service import PREFIX as SERVICE
from penchant.rl.rewards.service import SCHEMES, ServiceReward, load_service

if TYPE_CHECKING:
    from penchant.data.prompts import Prompt

__all__ = ["ModelContext", "Reward", "RewardOptions", "Rewards", "Sample", "Scores", "make_rewards"]

Spec = str | Callable[..., Any]
Judge = JudgeReward | PairwiseJudgeReward
Made = FunctionReward | Judge | ServiceReward


def find_rewards(
    specs: Sequence[Spec],
    timeout: float | None = None,
    *,
    num_answers: int = 1,
    trust_remote_code: bool = False,
) -> list[Spec]:
    """Import the functions among what a run names, and look that its reward models are some.

    No weight is loaded: what cannot serve is refused before a policy takes its time to load.

    Args:
        specs: as for `make_rewards`, which takes what this returns.
        timeout: seconds that a call of a function may take.
        num_answers: to each prompt, which are judged together.
        trust_remote_code: run code that comes with a model.

    Raises:
        UserError: a function cannot be imported, a name stands for nothing, or for a model without
            a score head, or a judge compares answers and each prompt has one.
    """
    functions: list[Spec] = []
    for spec in specs:
        function = _function(spec, timeout)
        if function is None and not (Path(str(spec)) / ENSEMBLE).exists():
            find_scorer(str(spec), trust_remote_code)
        if compares(function) and num_answers < 2:
            raise ConfigError(
                f"reward {spec} compares the answers to one prompt with one another (pairwise), "
                "and here each has one; drop pairwise, so that each answer is scored by itself, "
                "or sample several answers to a prompt, as online_dpo, rloo and grpo do. evaluate "
                "takes such a judge as --judge"
            )
        functions.append(function or spec)
    return functions


def require_judging(found: Sequence[Spec], prompts: Sequence[Prompt]) -> None:
    """Refuse what could judge no answer to the prompts, before any is drawn.

    Args:
        found: as `find_rewards` returned it.
        prompts: that are answered.

    Raises:
        UserError: a function needs a column that a prompt lacks, or a judge does not judge.
    """
    require_columns(found, prompts)
    for reward in found:
        if isinstance(reward, Judge):
            reward.try_once()


def is_function(spec: str) -> bool:
    """Whether a name means a Python function: no model, and nothing that answers at an address."""
    if spec.startswith((PREFIX, *SCHEMES, SERVICE)):
        return False
    return ready(spec) is not None or (":" in spec and not Path(spec).exists())


def make_rewards(specs: Sequence[Spec], options: RewardOptions, context: ModelContext) -> Rewards:
    """Find and load what a run names as its rewards.

    Args:
        specs: each a callable, a ready function's short name, `judge:URL` or `judge:FILE.yaml`,
            `http://...` or `http:FILE.yaml`, `package.module:function`, `path/to/file.py:function`,
            or the folder, run, ensemble or hub id of a reward model.
        options: how they are called, combined and shaped.
        context: what reward models share with the run.

    Raises:
        UserError: a reward cannot be found, or an option does not fit.
    """
    rewards: list[Made | ModelReward | EnsembleReward] = []
    for spec in specs:
        reward: Made | ModelReward | EnsembleReward | None
        reward = _function(spec, options.reward_timeout)
        if reward is None:
            assert isinstance(spec, str), "a callable is a function"
            reward = load_model_reward(spec, options, context)
        reward.name = _unused(reward.name, [other.name for other in rewards])
        rewards.append(reward)
    return Rewards(rewards, options)


def _function(spec: Spec, timeout: float | None) -> Made | None:
    """The function, judge or service that a spec means; None where it means a model."""
    if isinstance(spec, Made):
        return spec
    if not isinstance(spec, str):
        name = getattr(spec, "__name__", type(spec).__name__)
        return FunctionReward(spec, name, timeout=timeout)
    if spec.startswith(PREFIX):
        settings = read_settings(spec)
        return PairwiseJudgeReward(settings) if settings.pairwise else JudgeReward(settings)
    if spec.startswith((*SCHEMES, SERVICE)):
        return load_service(spec)
    if known := ready(spec):
        return FunctionReward(known[1], known[0], timeout=timeout)
    if spec.endswith(".py"):
        names = " or ".join(functions_in(spec)) or "a function that you write there"
        raise RewardError(f"reward {spec} names no function of that file; set reward to {names}")
    if Path(spec).exists() or (":" not in spec and spec.count("/") == 1):
        return None
    if ":" not in spec:
        raise ConfigError(
            f"reward {spec!r} is no folder, no hub id (owner/name), no function "
            f"(package.module:function or file.py:function), and not {_listed()}"
        )
    return FunctionReward(load_function(spec), spec.rpartition(":")[2], timeout=timeout)


def _unused(name: str, taken: Collection[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _listed() -> str:
    return f"one of {', '.join(NAMES)}"
