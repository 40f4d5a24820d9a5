"""What methods that sample their own answers run on: collector, rewards, source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from penchant.core.findings import Finding
from penchant.core.machine import resolve_precision
from penchant.data.batch import Group
from penchant.methods.importance import reweighted
from penchant.methods.kl import AdaptiveKLController, FixedKLController, KLController
from penchant.models.policy import PolicyScorer
from penchant.models.reference_copy import CopyReference
from penchant.rl.rewards.make import ModelContext, RewardOptions, make_rewards
from penchant.rl.rollout import Collector
from penchant.rl.sampling.automatic import as_drawn, engine_of
from penchant.rl.sampling.base import Sampling
from penchant.rl.sampling.engines import Place, make_sampler
from penchant.rl.source import RolloutSource, Schedule
from penchant.training.accelerator import team_of
from penchant.training.folder import read_lines

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.budget import TokenBudget
    from penchant.data.tokenised import TokenisedPrompt
    from penchant.methods.experience import Advantages, Experience
    from penchant.rl.rewards.judging import Rewards
    from penchant.training.folder import RunDirectory
    from penchant.training.setup import Setup


def probe_groups(examples: Sequence[TokenisedPrompt], length: int) -> list[Group]:
    """Prompts with a stand-in for the longest answer, to measure and check with before sampling.

    Args:
        examples: at least one.
        length: of an answer, in tokens.
    """
    groups = []
    for example in examples:
        repeated = example.prompt * math.ceil(length / len(example.prompt))
        groups.append(Group(example.prompt, (repeated[:length],)))
    return groups


def make_collector(config: RunConfig, accelerator: Accelerator, setup: Setup) -> Collector:
    """What answers prompts and judges the answers.

    Args:
        config: of the run.
        accelerator: its device and precision.
        setup: with policy and reference in place.
    """
    options: Any = config.options
    policy = setup.scorer
    assert isinstance(policy, PolicyScorer)
    if isinstance(setup.reference, CopyReference):
        with setup.reference.active() as other:
            other.sample_from(temperature=options.temperature, top_k=options.top_k,
                              top_p=options.top_p)  # fmt: skip
    needs, teacher = config.spec.needs(options), None
    if needs.divergence is not None:
        from penchant.training.teachers import make_teacher

        probes = probe_groups(setup.train_set[:2], options.max_completion_length)
        teacher = make_teacher(config, accelerator, setup, probes)
    return Collector(
        policy=policy,
        reference=setup.reference,
        sampler=make_sampler(
            options,
            Place(
                policy,
                name=setup.base,
                end_token_ids=setup.end_ids,
                max_length=config.max_length,
                precision=resolve_precision(config.precision, accelerator.device),
                trust_remote_code=config.trust_remote_code,
                team=team_of(accelerator),
            ),
        ),
        sampling=Sampling(
            options.max_completion_length, options.temperature, options.top_k, options.top_p
        ),
        rewards=_rewards(config, accelerator, setup),
        tokenizer=setup.tokenizer,
        num_generations=options.generations,
        full_kl=needs.full_kl,
        teacher=teacher,
        scored=needs.scored,
        batch_size=config.per_device_eval_batch_size,
        autocast=accelerator.autocast,
        team=team_of(accelerator),
        reuses=options.importance_level is None,
    )


def reward_context(config: RunConfig, accelerator: Accelerator, setup: Setup) -> ModelContext:
    """What reward models share with a run; none of them lives on its policy."""
    return ModelContext(
        setup.tokenizer,
        base=setup.base,
        device=accelerator.device,
        dtype=setup.scorer.causal_model.dtype,
        frozen_dtype=config.frozen_dtype,
        precision=resolve_precision(config.precision, accelerator.device),
        autocast=accelerator.autocast,
        batch_size=config.per_device_eval_batch_size,
        max_length=config.max_length,
        trust_remote_code=config.trust_remote_code,
    )


def _rewards(config: RunConfig, accelerator: Accelerator, setup: Setup) -> Rewards:
    options = config.options
    assert isinstance(options, RewardOptions)
    model = setup.scorer.model
    context = reward_context(config, accelerator, setup)
    if options.share_reward_adapter and isinstance(model, PeftModel):
        whole = partial(setup.scorer.opened, layers=True)
        context = replace(context, policy=model, whole=whole)
    return make_rewards(setup.rewards, options, context)


def make_source(
    config: RunConfig, setup: Setup, run: RunDirectory, budget: TokenBudget | None = None
) -> RolloutSource:
    """The rollouts of a run.

    Args:
        config: of the run.
        setup: with a collector.
        run: where answers and findings are written.
        budget: fills the training passes by tokens.
    """
    options: Any = config.options
    assert setup.collector is not None and config.spec.advantages is not None
    setup.collector.reset()  # runs may follow each other on one setup
    rewards = setup.collector.rewards
    rewards.findings = [note.what for note in setup.notes]  # what scoring adds is of one run
    rewards.say = partial(_say_of_rewards, run)
    estimate, sampler = config.spec.advantages, setup.collector.sampler

    def bound(options: Any) -> Callable[[Experience, float], Advantages]:
        def weighted(experience: Experience, coefficient: float) -> Advantages:
            made = estimate(experience, coefficient, options)
            return reweighted(made, experience, as_drawn(options, sampler))

        return weighted

    return RolloutSource(
        prompts=setup.train_set,
        collector=setup.collector,
        estimate=bound(options),
        rebind=bound,
        controller=_controller(options),
        schedule=Schedule(
            batch_size=options.batch_size,
            num_generations=options.generations,
            epochs=options.epochs,
            micro_batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            num_steps=num_sampled_steps(config, len(setup.train_set), setup.collector.team.size),
            shuffle=config.shuffle,
            seed=config.seed,
            early_stopping_kl=getattr(options, "early_stopping_kl", None),
            log_completions=options.log_completions,
            max_gen_batches=options.max_gen_batches,
        ),
        append=run.append,
        say=partial(run.say, once=True),
        budget=budget,
        draws=partial(engine_of, options, sampler),
    )


def of_rewards(text: str) -> Finding:
    """What the rewards of a run have to say, as a finding."""
    return Finding("reward-setup", "warning", text, "correct the reward, or the keys that name it")


def _say_of_rewards(run: RunDirectory, text: str) -> None:
    """Say what scoring has found, once in a run, also where it is resumed.

    Of several processes the leader tells what it finds in its own share of the answers.
    """
    said = read_lines(run.path / "findings.jsonl")
    if text not in [record["what"] for record in said]:
        run.say(0, of_rewards(text))


def _controller(options: Any) -> KLController:
    value = getattr(options, "init_kl_coef", 0.0)
    if value and options.adap_kl_ctrl:
        return AdaptiveKLController(value, options.target_kl, options.horizon)
    return FixedKLController(value)


def num_sampled_steps(config: RunConfig, num_prompts: int, num_processes: int = 1) -> int:
    """Optimizer steps: as many as were asked for, or as the answers to sample come to."""
    if config.max_steps is not None:
        return config.max_steps
    options: Any = config.options
    passes = config.num_train_epochs * num_prompts * options.generations
    episodes = options.total_episodes or math.ceil(passes)
    mini_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    mini_batch *= num_processes
    return int(math.ceil(episodes / options.batch_size) * options.steps_a_batch(mini_batch))
