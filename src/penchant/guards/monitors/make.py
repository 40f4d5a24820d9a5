"""What watches a run, made from its configuration and what is loaded."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from penchant.config.actions import parse_actions
from penchant.core.errors import ConfigError
from penchant.core.findings import Finding
from penchant.guards.monitors.history import RunFacts
from penchant.guards.monitors.levers import length_lever, rate_lever, strength_lever
from penchant.guards.monitors.monitor import Monitor, MonitoredPrompt
from penchant.guards.monitors.pace import Pace
from penchant.guards.monitors.supervisor import Supervisor
from penchant.models.reference import AdapterReference, Reference
from penchant.rl.rewards.make import ModelContext, RewardOptions, make_rewards
from penchant.rl.sampling.sampler import CachedSampler, Sampling

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.rl.rewards.make import Rewards
    from penchant.training.engine import Engine
    from penchant.training.setup import Setup

# A training step beside a scoring pass of the same tokens: forward, and twice that backward.
TRAINING_PASSES = 3.0


def make_supervisor(
    config: RunConfig, accelerator: Accelerator, setup: Setup, engine: Engine
) -> tuple[Supervisor, list[Finding]]:
    """The guard of a run, and what is to be said of it before the first step.

    Raises:
        ConfigError: actions in several processes, or a monitor_reward that cannot be loaded.
    """
    actions = parse_actions(config.on_finding)
    if actions.acts and accelerator.num_processes > 1:
        raise ConfigError(
            "on_finding: with several processes findings can only warn; set on_finding to warn"
        )
    monitor, findings = _monitor(config, accelerator, setup)
    options: Any = config.options
    lever = strength_lever(
        options, engine.objective, engine.source, referenced=setup.reference is not None
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
        actions=actions,
        silenced=[name.strip() for name in config.silence.split(",") if name.strip()],
        monitor=monitor,
        pace=Pace(engine.source.num_steps, config.monitor_steps, config.monitor_share),
        log=engine.log,
        roll_back=engine.roll_back,
        levers=[*([lever] if lever else []), rate_lever(engine.scheduler)],
        length=None if rewards is None else lambda budget: length_lever(rewards, budget),
    )
    return supervisor, [one for one in findings if one.id not in supervisor.silenced]


def _monitor(
    config: RunConfig, accelerator: Accelerator, setup: Setup
) -> tuple[Monitor | None, list[Finding]]:
    if config.spec.model != "language" or not config.monitor_prompts:
        return None, []
    prompts, findings = _prompts(config, setup)
    if not prompts:
        return None, findings
    options: Any = config.options
    sampling = Sampling(config.monitor_length)
    sampler: Any = CachedSampler(setup.scorer, setup.end_ids, max(8, len(prompts)))
    if setup.collector is not None:  # as it is trained, so that log-probs are of what was sampled
        longest = min(config.monitor_length, options.max_completion_length)
        sampling = Sampling(longest, options.temperature, options.top_k, options.top_p)
        sampler = setup.collector.sampler
    monitor = Monitor(
        prompts=prompts,
        scorer=setup.scorer,
        reference=_reference(setup),
        sampler=sampler,
        sampling=sampling,
        decode=lambda ids: str(setup.tokenizer.decode(ids, skip_special_tokens=True)),
        rewards=None if setup.collector is None else setup.collector.rewards,
        held_out=_held_out(config, accelerator, setup),
        batch_size=config.per_device_eval_batch_size,
        autocast=accelerator.autocast,
    )
    return monitor, findings


def _prompts(config: RunConfig, setup: Setup) -> tuple[list[MonitoredPrompt], list[Finding]]:
    """The first distinct held-out prompts; a sample of the training prompts where they are all."""
    records: dict[str, Any] = {record.where: record for record in setup.eval_records}
    examples, findings = setup.eval_set, []
    if not examples:
        findings = [_no_held_out(config)]
        if not config.spec.samples:
            return [], findings
        count = min(len(setup.train_set), config.monitor_prompts)
        examples = random.Random(config.seed).sample(setup.train_set, count)
    found: dict[tuple[int, ...], MonitoredPrompt] = {}
    for example in examples:
        if len(found) == config.monitor_prompts:
            break
        record = getattr(example, "record", None) or records[example.where]
        fields = getattr(record, "fields", {})
        prompt = MonitoredPrompt(example.prompt, record.prompt, fields, example.where)
        found.setdefault(tuple(example.prompt), prompt)
    return list(found.values()), findings


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


def _reference(setup: Setup) -> Reference | None:
    """One that is in memory; an adapter can be switched off whatever the method needs."""
    if setup.reference is not None:
        with setup.reference.active() as scorer:
            if scorer is not None:
                return setup.reference
    if isinstance(setup.scorer.model, PeftModel) and setup.reference is None:
        return AdapterReference(setup.scorer)
    return None


def _held_out(config: RunConfig, accelerator: Accelerator, setup: Setup) -> Rewards | None:
    if config.monitor_reward is None:
        return None
    context = ModelContext(
        setup.tokenizer,
        base=setup.base,
        device=accelerator.device,
        dtype=setup.scorer.causal_model.dtype,
        autocast=accelerator.autocast,
        batch_size=config.per_device_eval_batch_size,
        max_length=config.max_length,
        trust_remote_code=config.trust_remote_code,
    )
    options = RewardOptions.model_validate({"reward": config.monitor_reward})
    return make_rewards(options.reward, options, context)


@torch.no_grad()
def predicted_seconds(config: RunConfig, setup: Setup, num_steps: int) -> float:
    """A prediction of a run's time, from one scoring pass of its first examples.

    Sampling is not counted: methods that sample take longer than this.
    """
    scorer, size = setup.scorer, config.per_device_train_batch_size
    groups = [example.group() for example in setup.train_set[:size]]
    if config.spec.samples:
        from penchant.training.rollouts import probe_groups

        groups = probe_groups(setup.train_set[:size], config.options.max_completion_length)  # type: ignore[attr-defined]
    was_training = scorer.training
    scorer.eval()
    batch = scorer.batch(groups)
    scorer(batch)
    began = time.perf_counter()
    scorer(batch)
    seconds = time.perf_counter() - began
    scorer.train(was_training)
    return seconds * TRAINING_PASSES * config.gradient_accumulation_steps * num_steps
