"""What a monitor of a run answers, and with which sampler, reference and rewards."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding
from penchant.guards.monitors.monitor import Monitor, MonitoredPrompt
from penchant.guards.monitors.pace import Pace
from penchant.guards.monitors.watch import Watch, predicted_seconds
from penchant.models.reference import Reference
from penchant.rl.rewards.make import RewardOptions, make_rewards
from penchant.rl.rewards.spending import Spending
from penchant.rl.sampling.base import Sampling
from penchant.rl.sampling.sampler import CachedSampler
from penchant.training.accelerator import team_of
from penchant.training.references import switched_off
from penchant.training.rollouts import reward_context

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.rl.rewards.make import Rewards
    from penchant.training.engine import Engine
    from penchant.training.setup import Setup

logger = logging.getLogger("penchant")


def make_watch(config: RunConfig, accelerator: Accelerator, setup: Setup, engine: Engine) -> Watch:
    """What lets the policy answer held-out prompts during a run."""
    num_steps = engine.source.num_steps
    monitor = make_monitor(config, accelerator, setup)
    held_out = monitor.held_out
    return Watch(
        run=engine.run,
        monitor=monitor,
        pace=Pace(num_steps, config.monitor_steps, config.monitor_share),
        log=engine.log,
        run_seconds=partial(predicted_seconds, config, setup, num_steps),
        spending=None if held_out is None else Spending(held_out, engine.team),
    )


def make_monitor(config: RunConfig, accelerator: Accelerator, setup: Setup) -> Monitor:
    """What answers a run's held-out prompts; without any, some that are trained on.

    Raises:
        UserError: a monitor_reward whose weights cannot be loaded.
    """
    prompts = _prompts(config, setup, config.monitor_prompts)
    monitor = answering(config, accelerator, setup, prompts, _reference(config, setup))
    held_out = held_out_rewards(config, accelerator, setup)
    if setup.collector is None:
        sampling = Sampling(config.monitor_length)
        return replace(monitor, sampling=sampling, held_out=held_out)
    # As it is trained, so that log-probs are of what was sampled.
    options: Any = config.options
    longest = min(config.monitor_length, options.max_completion_length)
    return replace(
        monitor,
        sampling=Sampling(longest, options.temperature, options.top_k, options.top_p),
        sampler=setup.collector.sampler,
        rewards=setup.collector.rewards.alone,
        held_out=held_out,
    )


def answering(
    config: RunConfig,
    accelerator: Accelerator,
    setup: Setup,
    prompts: Sequence[MonitoredPrompt],
    reference: Reference | None,
) -> Monitor:
    """A monitor whose answers have up to `max_new_tokens`, and which judges none of them."""
    return Monitor(
        prompts=prompts,
        scorer=setup.scorer,
        reference=reference,
        sampler=CachedSampler(setup.scorer, setup.end_ids, max(8, len(prompts))),
        sampling=Sampling(config.max_new_tokens),
        tokenizer=setup.tokenizer,
        rewards=None,
        held_out=None,
        batch_size=config.per_device_eval_batch_size,
        autocast=accelerator.autocast,
        team=team_of(accelerator),
    )


def measure_divergence(
    config: RunConfig, accelerator: Accelerator, setup: Setup
) -> dict[str, float]:
    """How far the policy's own answers to held-out prompts are from the reference.

    Returns:
        `kl/sequence`, in nats per answer, and `kl/sequence_error`, its standard error where there
        are several answers; nothing where there is no held-out prompt or no reference in memory.
    """
    count = max(config.monitor_prompts, config.eval_samples)
    reference = _reference(config, setup)
    if not setup.eval_set or not count or reference is None:
        return {}
    prompts = _prompts(config, setup, count)
    found = answering(config, accelerator, setup, prompts, reference).check().metrics
    names = {"kl/sequence": "monitor/kl_sequence", "kl/sequence_error": "monitor/kl_error"}
    return {name: found[metric] for name, metric in names.items() if metric in found}


def _prompts(config: RunConfig, setup: Setup, wanted: int) -> list[MonitoredPrompt]:
    """The first distinct held-out prompts; a sample of the training prompts where they are all."""
    examples = setup.eval_set
    if not examples:
        count = min(len(setup.train_set), wanted)
        examples = random.Random(config.seed).sample(setup.train_set, count)
    records = {record.where: record for record in setup.eval_records}
    return distinct_prompts(examples, records, wanted)


def distinct_prompts(
    examples: Sequence[Any], records: Mapping[str, Any], wanted: int
) -> list[MonitoredPrompt]:
    """The first distinct prompts of tokenised examples.

    Args:
        examples: in order.
        records: what they were made of, by where it stands; not needed of examples that keep it.
        wanted: how many at most.
    """
    prompts: dict[tuple[int, ...], MonitoredPrompt] = {}
    for example in examples:
        if len(prompts) == wanted:
            break
        record = getattr(example, "record", None) or records[example.where]
        fields = getattr(record, "fields", {})
        ids = list(example.asked or example.prompt)
        prompt = MonitoredPrompt(ids, record.prompt, fields, example.where)
        prompts.setdefault(tuple(ids), prompt)
    return list(prompts.values())


def _reference(config: RunConfig, setup: Setup) -> Reference | None:
    """One that is in memory; an adapter can be switched off whatever the method needs."""
    if setup.reference is None:
        return switched_off(config, setup.scorer)
    with setup.reference.active() as scorer:
        return None if scorer is None else setup.reference


def held_out_rewards(config: RunConfig, accelerator: Accelerator, setup: Setup) -> Rewards | None:
    """What `monitor_reward` names, loaded; None where it names nothing."""
    if not setup.monitor_rewards:
        return None
    # An answer that cannot be judged ends neither a comparison nor the monitors of a run.
    named = {"reward": config.monitor_reward, "on_reward_error": "drop"}
    options = RewardOptions.model_validate(named)
    context = reward_context(config, accelerator, setup)
    rewards = make_rewards(setup.monitor_rewards, options, context)
    for text in rewards.findings:
        logger.info("%s", text)
    return rewards


def no_held_out(config: RunConfig) -> Finding:
    """That there are no held-out prompts, and what monitors answer in their place."""
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


def no_start() -> Finding:
    """That nothing in memory is the model that training starts from, and what that costs."""
    return Finding(
        id="start-not-at-hand",
        severity="note",
        what="the method has no reference, and with these settings of peft the model without its "
        "adapter is not the one that training starts from: how far answers are from it is not told",
        remedy="drop bias and init_lora_weights from peft to be told",
    )
