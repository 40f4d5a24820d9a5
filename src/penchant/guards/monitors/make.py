"""What watches a run, made from its configuration and what is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from penchant.config.actions import parse_actions
from penchant.core.findings import Finding
from penchant.core.machine import seconds_of
from penchant.data.batch import laid_out
from penchant.guards.monitors.history import RunFacts
from penchant.guards.monitors.levers import length_lever, rate_lever, strength_lever
from penchant.guards.monitors.pace import Pace
from penchant.guards.monitors.supervisor import Supervisor
from penchant.training.kind import kind_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.training.engine import Engine
    from penchant.training.setup import Setup

# A training step beside a scoring pass of the same tokens: forward, and twice that backward.
TRAINING_PASSES = 3.0


def make_supervisor(
    config: RunConfig, accelerator: Accelerator, setup: Setup, engine: Engine
) -> tuple[Supervisor, list[Finding]]:
    """The guard of a run, and what is to be said of it before the first step."""
    monitor, findings = None, []
    if config.spec.model == "language" and config.monitor_prompts:
        if not setup.eval_set:
            findings = [_no_held_out(config)]
        if setup.eval_set or config.spec.samples:
            from penchant.guards.monitors.answering import make_monitor

            monitor = make_monitor(config, accelerator, setup)
    options: Any = config.options
    lever = strength_lever(
        options, engine.step.objective, engine.source, referenced=setup.reference is not None
    )
    rewards = None if setup.collector is None else setup.collector.rewards
    supervisor = Supervisor(
        run=engine.run,
        facts=RunFacts(
            num_steps=engine.source.num_steps,
            samples=config.spec.samples,
            scores=config.spec.model == "score",
            strength="" if lever is None else lever.name,
            sft="rpo_alpha" if hasattr(options, "rpo_alpha") else "",
            beta=getattr(options, "beta", None) if config.spec.needs_reference else None,
        ),
        actions=parse_actions(config.on_finding),
        monitor=monitor,
        pace=Pace(engine.source.num_steps, config.monitor_steps, config.monitor_share),
        log=engine.log,
        roll_back=engine.checkpoints.roll_back,
        levers=[*([lever] if lever else []), rate_lever(engine.step.scheduler)],
        length=None if rewards is None else lambda budget: length_lever(rewards, budget),
    )
    return supervisor, findings


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


@torch.no_grad()
def predicted_seconds(config: RunConfig, setup: Setup, num_steps: int) -> float:
    """A prediction of a run's time, from one scoring pass of its first examples.

    Sampling is not counted: methods that sample take longer than this.
    """
    scorer, size = setup.scorer, config.per_device_train_batch_size
    groups = kind_of(config.spec).groups(config, setup.train_set[:size])
    every = sum(group.num_tokens for group in groups)
    limit = config.max_tokens_per_batch
    while (
        limit is not None
        and len(groups) > 1
        and laid_out(groups, layout=scorer.plan.layout) > limit
    ):
        groups.pop()
    with scorer.evaluating():
        batch = scorer.batch(groups)
        scorer(batch)
        seconds, _ = seconds_of(lambda: scorer(batch), scorer.causal_model.device)
    seconds *= every / sum(group.num_tokens for group in groups)
    return seconds * TRAINING_PASSES * config.gradient_accumulation_steps * num_steps
