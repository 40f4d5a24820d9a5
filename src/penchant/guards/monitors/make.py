"""What watches a run, made from its configuration and what is loaded."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from penchant.config.actions import parse_actions
from penchant.core.findings import Finding
from penchant.guards.monitors.history import RunFacts
from penchant.guards.monitors.supervisor import Supervisor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.guards.monitors.levers import Lever
    from penchant.guards.monitors.watch import Watch
    from penchant.rl.rewards.make import Rewards
    from penchant.training.engine import Engine
    from penchant.training.setup import Setup


def make_supervisor(
    config: RunConfig, accelerator: Accelerator, setup: Setup, engine: Engine
) -> tuple[Supervisor, list[Finding]]:
    """The guard of a run, and what is to be said of it before the first step."""
    watch, findings = None, []
    if config.spec.model == "language" and config.monitor_prompts:
        if not setup.eval_set:
            findings = [_no_held_out(config)]
        if setup.eval_set or config.spec.samples:
            watch = _make_watch(config, accelerator, setup, engine)
    options: Any = config.options
    strength = _strength(options, referenced=setup.reference is not None)
    first_rate = engine.step.scheduler.base_lrs[0]

    @cache
    def levers() -> list[Lever]:
        from penchant.guards.monitors.levers import rate_lever, strength_lever

        rate = rate_lever(engine.step.scheduler, first_rate)
        hold = strength_lever(strength, options, engine.step.objective, engine.source)
        return [hold, rate] if strength else [rate]

    rewards = None if setup.collector is None else setup.collector.rewards
    supervisor = Supervisor(
        run=engine.run,
        facts=RunFacts(
            num_steps=engine.source.num_steps,
            samples=config.spec.samples,
            scores=config.spec.model == "score",
            strength=strength,
            sft="rpo_alpha" if hasattr(options, "rpo_alpha") else "",
            beta=getattr(options, "beta", None) if config.spec.needs_reference else None,
        ),
        actions=parse_actions(config.on_finding),
        roll_back=engine.checkpoints.roll_back,
        watch=watch,
        levers=levers,
        length=None if rewards is None else partial(_length_lever, rewards),
    )
    return supervisor, findings


def _length_lever(rewards: Rewards, budget: int) -> Lever:
    from penchant.guards.monitors.levers import length_lever

    return length_lever(rewards, budget)


def _make_watch(config: RunConfig, accelerator: Accelerator, setup: Setup, engine: Engine) -> Watch:
    from penchant.guards.monitors.answering import make_monitor
    from penchant.guards.monitors.pace import Pace
    from penchant.guards.monitors.watch import Watch, predicted_seconds

    num_steps = engine.source.num_steps
    return Watch(
        run=engine.run,
        monitor=make_monitor(config, accelerator, setup),
        pace=Pace(num_steps, config.monitor_steps, config.monitor_share),
        log=engine.log,
        run_seconds=partial(predicted_seconds, config, setup, num_steps),
    )


def _strength(options: Any, *, referenced: bool) -> str:
    """The key that holds the policy near its reference; empty for methods without one.

    Args:
        options: of the method.
        referenced: whether the method compares with a reference: elsewhere `beta` is another thing.
    """
    keys = ("init_kl_coef", "beta") if referenced else ("init_kl_coef",)
    return next((key for key in keys if key in type(options).model_fields), "")


def _no_held_out(config: RunConfig) -> Finding:
    instead = (
        f"monitors answer {config.monitor_prompts} of the training prompts instead"
        if config.spec.samples
        else "there are no monitors"
    )
    return Finding(
        id="no-held-out-prompts",
        severity="note",
        what=f"the run has no held-out prompts for the policy to answer: {instead}",
        remedy="hold some out: --train_fraction 0.9, or eval_data",
    )
