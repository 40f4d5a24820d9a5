"""`penchant.check`: what training would be given, looked at without training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from accelerate.utils import set_seed

from penchant.commands.check_result import CheckResult, stopped
from penchant.commands.train import Given, given
from penchant.config.keys import RunConfig
from penchant.core.errors import ConfigError, TrainingError, UserError
from penchant.core.findings import Finding, by_severity, spoken
from penchant.core.machine import out_of_memory_explained, resolve_precision
from penchant.core.screen import setup_logging
from penchant.core.target import find_machine
from penchant.core.team import Team, launched
from penchant.guards.checks.gather import find_faults, take_snapshot
from penchant.guards.checks.preview import preview
from penchant.guards.estimate.estimate import RunEstimate, estimate_run, estimate_unloaded
from penchant.models.path import describe_path
from penchant.models.rough_sizes import adapter_weights, empty_model, measure_model
from penchant.training.accelerator import make_accelerator, team_of
from penchant.training.folder import recorded_keys, require_free
from penchant.training.inputs import read_inputs, read_run_data
from penchant.training.prepare import prepare
from penchant.training.setup import Inputs, RunData, Setup

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.rl.rewards.trial import Trial

T = TypeVar("T")


class _StoppedError(Exception):
    """A mistake that every process has heard of, and the leader tells."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


class _Read(NamedTuple):
    """What needs no weight, with the numbers of processes and of the parts that they divide."""

    run_data: RunData
    inputs: Inputs
    num_processes: int
    parts: int | None


def check(
    method: str | None = None,
    *,
    config: Path | str | None = None,
    probe: bool = True,
    num_processes: int | None = None,
    node_size: int | None = None,
    **keys: Any,
) -> CheckResult:
    """Look at a run before it starts: its configuration, data, tokens, model, memory and time.

    What would stop the run is an error finding, not an exception. Nothing is written but what
    training would find in the cache. Processes that were launched together return the same
    findings, what the first one does not find under the number of another, and an estimate each.

    Args:
        method: a name in `penchant.METHODS`; default: the one that `config` names.
        config: a YAML file of flat keys; the arguments here win over it.
        probe: load the weights, and measure memory and time in a few passes; without it memory is
            estimated from the model's configuration, and time is not.
        num_processes: that will share the run, as of `torchrun`: what one of them meets is told;
            default: those that are here.
        node_size: of these, the processes on one node, which `sharding: hybrid` asks for.
        keys: any key that `penchant.train` takes.

    Raises:
        UserError: in a process that is not the first, where the others cannot hear of it.
    """
    setup_logging()
    wanted: Given | None = None
    own: Finding | None = None
    name, silence = method or "", str(keys.get("silence") or "")
    try:
        wanted = given(method, config=config, keys=keys)
        name, silence = wanted.config.method, wanted.config.silence
    except UserError as error:
        own = stopped(error)  # which the other processes may not have
    try:
        return _look(wanted, own, probe, num_processes, node_size)
    except _StoppedError as told:
        finding = told.finding
    except UserError as error:
        if not launched().leads:
            raise
        sys.last_value = error  # others may wait in a collective: `training/leaving.py` reads it
        finding = stopped(error)
    return CheckResult(name, spoken([finding], silence))


def _look(
    wanted: Given | None,
    own: Finding | None,
    probe: bool,
    asked: int | None,
    node_size: int | None,
) -> CheckResult:
    """As `check`, of what was given to this process, or with its own mistake in that."""
    accelerator = make_accelerator("auto" if wanted is None else wanted.config.precision)
    team = team_of(accelerator)
    if (told := _first_told(team, own)) is not None:
        raise _StoppedError(told)
    assert wanted is not None, "a mistake is told"
    config = wanted.config
    read = _everywhere(team, partial(_read, wanted, accelerator, asked, node_size))
    inputs = read.inputs
    run = take_snapshot(config, inputs, read.num_processes)
    found = [*_taken(config, read.run_data, team), *find_faults(run, inputs.train_set)]
    findings = _told(team, found)  # by which all of them go on, or none
    estimate: RunEstimate | None = None
    trials: Sequence[Trial] = ()
    path: list[tuple[str, str]] = []
    # A folder that is taken, such as that of the last run, changes nothing in what is measured.
    if not any(one.severity == "error" and one.id != "output" for one in findings):
        path = describe_path(
            inputs.base,
            trust_remote_code=config.trust_remote_code,
            attention=config.attention,
        )
        estimate, trials = _estimate(config, read, probe, accelerator)
        refusal = _first_told(team, estimate.finding())
        findings = by_severity([*spoken([refusal] if refusal else [], config.silence), *findings])
    shown = preview(inputs.train_set[0], inputs.tokenizer, inputs.end_ids)
    return CheckResult(config.method, findings, shown, estimate, trials, path)


def _everywhere(team: Team, action: Callable[[], T]) -> T:
    """What an action returns, in which no process waits for another.

    Raises:
        _StoppedError: it met a mistake in one of them: all processes hear of the first one.
    """
    result: T | None = None
    own: Finding | None = None
    try:
        result = action()
    except UserError as error:
        own = stopped(error)
    if (told := _first_told(team, own)) is not None:
        raise _StoppedError(told)
    return cast("T", result)


def _first_told(team: Team, own: Finding | None) -> Finding | None:
    """What the first process finds, or else another one; all of them call it."""
    return next(iter(_told(team, [] if own is None else [own])), None)


def _told(team: Team, own: Sequence[Finding]) -> list[Finding]:
    """What the first process finds, and what others find beside that; all of them call it."""
    told: dict[tuple[str, str], Finding] = {}
    for rank, found in enumerate(team.gather(own)):
        where = f"process {rank}: " if rank else ""  # the leader speaks for all
        for one in found:
            told.setdefault((one.id, one.what), replace(one, what=f"{where}{one.what}"))
    return by_severity(told.values())


def _read(
    wanted: Given, accelerator: Accelerator, asked: int | None, node_size: int | None
) -> _Read:
    config = wanted.config
    run_data = read_run_data(config, wanted.data, wanted.eval_data)
    num_processes = _count(accelerator.num_processes, asked)
    inputs = read_inputs(config, run_data, rewards=wanted.rewards, num_processes=num_processes)
    parts: int | None = None
    if num_processes > 1 and config.sharding in ("full", "hybrid"):
        from penchant.training.sharded import num_parts, require_divisible

        precision = resolve_precision(config.precision, accelerator.device)
        require_divisible(config, inputs.base, inputs.settings, precision)
        parts = num_parts(config, num_processes, node_size)
    return _Read(run_data, inputs, num_processes, parts)


def _count(here: int, asked: int | None) -> int:
    """Of the processes of the run: those that are here, or those that this one speaks for."""
    num_processes = here if asked is None else asked
    if num_processes < 1:
        raise ConfigError(f"num_processes must be at least 1, got {num_processes}")
    if here not in (1, num_processes):
        raise ConfigError(
            f"num_processes is {asked}, and {here} were launched; leave num_processes out, or "
            "start penchant check without a launcher"
        )
    return num_processes


def _estimate(
    config: RunConfig, read: _Read, probe: bool, accelerator: Accelerator
) -> tuple[RunEstimate, Sequence[Trial]]:
    """What the run would take and what its rewards pay: with the weights, where they fit."""
    inputs, team = read.inputs, team_of(accelerator)
    num_processes, parts = read.num_processes, read.parts
    size = measure_model(inputs.base, trust_remote_code=config.trust_remote_code)
    rough = estimate_unloaded(
        config,
        size,
        find_machine(None),
        inputs.train_set,
        num_processes,
        _adapter_weights(config, inputs.base),
        parts,
        len(inputs.eval_set),
    )
    if not probe or team.agree(rough.impossible):
        return rough, _everywhere(team, partial(_tried_functions, config, inputs, team))
    set_seed(config.seed)
    if team.size == num_processes:
        setup, parts = prepare(config, accelerator, inputs), None  # what is measured is a part
    else:  # this process speaks for several
        setup = prepare(config.model_copy(update={"offload": False}), accelerator, inputs)
    config = setup.decide(config)
    trials = _tried_rewards(config, setup, team)
    remedy = "set max_tokens_per_batch, gradient_checkpointing on, or a lower max_length"
    with out_of_memory_explained("passes were tried", remedy):
        found = estimate_run(config, setup, accelerator, num_processes=num_processes, parts=parts)
    return found, trials


def _adapter_weights(config: RunConfig, base: str) -> int | None:
    """Of an adapter that the keys shape; None where it is the usual one, or there is none."""
    usual = config.lora_target_modules == "all-linear" and not config.lora_target_parameters
    if not config.lora_r or (usual and not config.peft):
        return None
    return adapter_weights(
        empty_model(base, trust_remote_code=config.trust_remote_code),
        r=config.lora_r,
        target_modules=config.lora_target_modules,
        target_parameters=config.lora_target_parameters,
        settings=config.peft,
    )


def _tried_rewards(config: RunConfig, setup: Setup, team: Team) -> Sequence[Trial]:
    """The rewards on answers of the policy; all processes sample, and the leader asks.

    Rewards on the weights of the policy, which the processes may have divided, are asked by all.
    """
    if setup.collector is None:
        return []
    from penchant.rl.rewards.trial import TRIED, try_rewards

    rewards = setup.collector.rewards
    num = TRIED if rewards.compares else 1  # to each prompt
    samples = setup.collector.draw_samples(setup.train_set[: TRIED // num], config.seed, num)
    ask = partial(try_rewards, rewards, samples, sampled=True)
    if rewards.shares_policy:
        return ask()
    return _everywhere(team, lambda: ask() if team.leads else [])


def _tried_functions(config: RunConfig, inputs: Inputs, team: Team) -> Sequence[Trial]:
    """The reward functions on answers made from the data: nothing is loaded to sample any."""
    if not (config.spec.samples and team.leads):
        return []
    from penchant.rl.rewards.trial import try_functions

    options: Any = config.options
    return try_functions(inputs.rewards, options, inputs.train_set, inputs.tokenizer)


def _taken(config: RunConfig, run_data: RunData, team: Team) -> list[Finding]:
    """That another run has the output, where training would refuse to start for it."""
    if getattr(config.options, "ensemble", None):  # its members have folders of their own
        return []
    try:
        require_free(config.output, recorded_keys(config, run_data, team.size),
                     resume=config.resume, overwrite=config.overwrite)  # fmt: skip
    except TrainingError as error:
        return spoken([stopped(error)], config.silence)
    return []
