"""`penchant.train`: one run from its keys to a tuned, saved, evaluated model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from penchant.commands.run import run_on
from penchant.config.keys import RunConfig, load_config
from penchant.core.screen import setup_logging
from penchant.data.opening import path_names
from penchant.guards.checks.gather import checked
from penchant.training.accelerator import make_accelerator, team_of
from penchant.training.folder import completed, open_directory, recorded_keys, require_free
from penchant.training.inputs import read_inputs, read_run_data
from penchant.training.prepare import prepare
from penchant.training.result import TrainResult

logger = logging.getLogger("penchant")


def train(
    method: str | None = None, *, config: Path | str | None = None, **keys: Any
) -> TrainResult:
    """Tune a model and save it.

    Args:
        method: a name in `penchant.METHODS`; default: the one that `config` names.
        config: a YAML file of flat keys; the arguments here win over it.
        keys: any key of the configuration: `model`, `data`, `output`, `beta`, ...; `data` and
            `eval_data` may also be a list of paths, a `datasets.Dataset` or a list of rows, and
            `reward` a function or a list of functions and names.

    Raises:
        UserError: a wrong key, bad data, a model that cannot serve, an output folder that is
            taken, numbers that are not finite.
    """
    setup_logging()
    wanted = given(method, config=config, keys=keys)
    return run(wanted)


@dataclass(frozen=True)
class Given:
    """What the user gave: the validated keys, and objects where a key may hold one."""

    config: RunConfig
    data: Any
    eval_data: Any
    rewards: list[Any]


def given(method: str | None, *, config: Path | str | None, keys: Mapping[str, Any]) -> Given:
    """Validate the keys of `train`, in which data and rewards may be objects.

    Raises:
        ConfigError: a wrong key or value.
    """
    sources = {name: keys[name] for name in ("data", "eval_data") if keys.get(name) is not None}
    paths = {name: listed for name, value in sources.items() if (listed := path_names(value))}
    objects = {name: value for name, value in sources.items() if name not in paths}
    texts = {name: f"<{type(value).__name__}>" for name, value in objects.items()}
    rewards = _listed(keys.get("reward"))
    named = {"reward": [_name(one) for one in rewards]} if rewards else {}
    checked = load_config(
        method, {**keys, **paths, **texts, **named}, file=None if config is None else Path(config)
    )
    data = objects.get("data", checked.data)
    return Given(checked, data, objects.get("eval_data", checked.eval_data), rewards)


def _listed(reward: Any) -> list[Any]:
    if reward is None:
        return []
    return list(reward) if isinstance(reward, list | tuple) else [reward]


def _name(reward: Any) -> str:
    """What `config.yaml` calls a reward."""
    if not callable(reward):
        return str(reward)
    return f"{reward.__module__}:{getattr(reward, '__qualname__', type(reward).__name__)}"


def run(wanted: Given) -> TrainResult:
    """Carry out a validated configuration."""
    config = wanted.config
    accelerator = make_accelerator(
        config.precision, trackers=config.trackers, folder=config.output / "trackers"
    )
    num_processes = accelerator.num_processes
    set_seed(config.seed)
    run_data = read_run_data(config, wanted.data, wanted.eval_data)
    if size := getattr(config.options, "ensemble", None):
        from penchant.commands.ensemble import train_ensemble

        return train_ensemble(config, size, run_data)
    recorded = recorded_keys(config, run_data, num_processes)
    require_free(config.output, recorded, resume=config.resume, overwrite=config.overwrite)
    if (summary := completed(config)) is not None:
        if config.merge and not (config.output / "merged").exists():
            from penchant.commands.merge import merge

            logger.info("%s is complete; its adapter is merged", config.output)
            if accelerator.is_main_process:
                merge(config.output, trust_remote_code=config.trust_remote_code)
        else:
            logger.info("%s is complete; nothing to resume", config.output)
        team_of(accelerator).wait()  # what follows may read the merged model
        return TrainResult.from_summary(summary)
    inputs = read_inputs(config, run_data, rewards=wanted.rewards, num_processes=num_processes)
    snapshot = checked(config, inputs, num_processes)
    setup = prepare(config, accelerator, inputs)
    # The folder is taken, or an earlier run in it removed, once this run can start.
    directory = open_directory(config, accelerator, run_data)
    return run_on(config, accelerator, directory, setup, snapshot)
