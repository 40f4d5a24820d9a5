"""What methods that sample their own answers run on: collector, rewards, source, memory table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from rich.table import Table

from penchant.core.errors import ConfigError
from penchant.core.screen import console
from penchant.data.batch import Group
from penchant.methods.kl import AdaptiveKLController, FixedKLController, KLController
from penchant.models.footprint import training_state
from penchant.models.policy import PolicyScorer, make_value_head
from penchant.models.reference import CopyReference
from penchant.models.scoring import Scorer
from penchant.rl.rewards.make import ModelContext, RewardOptions, make_rewards
from penchant.rl.rollout import Collector
from penchant.rl.sampling.engines import make_sampler
from penchant.rl.sampling.sampler import Sampling
from penchant.rl.source import RolloutSource, Schedule

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.tokenise import TokenisedPrompt
    from penchant.methods.experience import Advantages, Experience
    from penchant.rl.rewards.judging import Rewards
    from penchant.training.setup import Setup


def require_one_process(accelerator: Accelerator) -> None:
    """Refuse what sampling cannot do yet."""
    if accelerator.num_processes > 1:
        raise ConfigError(
            "methods that sample their own answers run in one process; start without "
            "`accelerate launch` or with --num_processes 1"
        )


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


def make_policy(config: RunConfig, model: Any, pad_token_id: int, critic: Any) -> PolicyScorer:
    """The scorer of a policy, with a value head where the method has one.

    Args:
        config: of the run.
        model: the policy.
        pad_token_id: of its tokenizer.
        critic: a model of its own for the value head, or None.
    """
    needs, options = config.spec.needs(config.options), config.options
    scorer = PolicyScorer(
        model,
        pad_token_id,
        value_head=make_value_head(model) if needs.values else None,
        critic=None if critic is None else Scorer(critic, pad_token_id),
        entropy_gradient=needs.entropy_gradient,
    )
    scorer.sample_from(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)  # type: ignore[attr-defined]
    return scorer


def has_critic(config: RunConfig) -> bool:
    """Whether the value head stands on a model of its own, trained as the policy is."""
    return getattr(config.options, "value_model", "shared") == "copy"


def make_collector(
    config: RunConfig, accelerator: Accelerator, setup: Setup, rewards: Sequence[Any] | None
) -> Collector:
    """What answers prompts and judges the answers.

    Args:
        config: of the run.
        accelerator: its device and precision.
        setup: with policy and reference in place.
        rewards: functions or names, in place of what `config.options.reward` names.
    """
    options: Any = config.options
    policy = setup.scorer
    assert isinstance(policy, PolicyScorer)
    if isinstance(setup.reference, CopyReference):
        with setup.reference.active() as other:
            other.sample_from(temperature=options.temperature, top_k=options.top_k,
                              top_p=options.top_p)  # fmt: skip
    return Collector(
        policy=policy,
        reference=setup.reference,
        sampler=make_sampler(
            options.generation,
            policy,
            name=setup.base,
            end_token_ids=setup.end_ids,
            batch_size=options.generation_batch_size,
        ),
        sampling=Sampling(
            options.max_completion_length, options.temperature, options.top_k, options.top_p
        ),
        rewards=_rewards(config, accelerator, setup, rewards),
        tokenizer=setup.tokenizer,
        num_generations=options.generations,
        full_kl=config.spec.needs(options).full_kl,
        batch_size=config.per_device_eval_batch_size,
        autocast=accelerator.autocast,
    )


def _rewards(
    config: RunConfig, accelerator: Accelerator, setup: Setup, rewards: Sequence[Any] | None
) -> Rewards:
    options = config.options
    assert isinstance(options, RewardOptions)
    model = setup.scorer.model
    context = ModelContext(
        setup.tokenizer,
        policy=model if options.share_reward_adapter and isinstance(model, PeftModel) else None,
        base=setup.base,
        device=accelerator.device,
        dtype=setup.scorer.causal_model.dtype,
        autocast=accelerator.autocast,
        batch_size=config.per_device_eval_batch_size,
        max_length=config.max_length,
        trust_remote_code=config.trust_remote_code,
    )
    made = make_rewards(rewards or options.reward, options, context)
    columns = [set(example.record.fields) for example in setup.train_set]
    made.check(set.intersection(*columns))
    return made


def make_source(
    config: RunConfig, setup: Setup, append: Callable[[str, Mapping[str, Any]], None]
) -> RolloutSource:
    """The rollouts of a run.

    Args:
        config: of the run.
        setup: with a collector.
        append: writes a record to a file of the run.
    """
    options: Any = config.options
    assert setup.collector is not None and config.spec.advantages is not None
    setup.collector.reset()  # runs may follow each other on one setup
    estimate = config.spec.advantages

    def bound(options: Any) -> Callable[[Experience, float], Advantages]:
        return lambda experience, coefficient: estimate(experience, coefficient, options)

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
            num_steps=num_sampled_steps(config, len(setup.train_set)),
            shuffle=config.shuffle,
            seed=config.seed,
            early_stopping_kl=getattr(options, "early_stopping_kl", None),
            log_completions=options.log_completions,
        ),
        append=append,
        noted={name.strip() for name in config.silence.split(",") if name.strip()},
    )


def _controller(options: Any) -> KLController:
    value = getattr(options, "init_kl_coef", 0.0)
    if value and options.adap_kl_ctrl:
        return AdaptiveKLController(value, options.target_kl, options.horizon)
    return FixedKLController(value)


def num_sampled_steps(config: RunConfig, num_prompts: int) -> int:
    """Optimizer steps: as many as were asked for, or as the answers to sample come to."""
    if config.max_steps is not None:
        return config.max_steps
    options: Any = config.options
    passes = config.num_train_epochs * num_prompts * options.generations
    episodes = options.total_episodes or math.ceil(passes)
    mini_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return (
        math.ceil(episodes / options.batch_size)
        * options.epochs
        * (options.batch_size // mini_batch)
    )


def memory_parts(setup: Setup) -> dict[str, int]:
    """Bytes of the weights that a run holds, by part, each counted once."""
    policy = setup.scorer
    assert isinstance(policy, PolicyScorer) and setup.collector is not None
    seen: set[int] = set()

    def count(parameters: Any) -> int:
        total = 0
        for parameter in parameters:
            if parameter.data_ptr() not in seen:
                seen.add(parameter.data_ptr())
                total += parameter.numel() * parameter.element_size()
        return total

    rewards = setup.collector.rewards.held_bytes()
    own = [(n, p) for n, p in policy.model.named_parameters() if ".reward." not in n]
    parts = {
        "policy, frozen": count(p for _, p in own if not p.requires_grad),
        "policy, trained": count(p for _, p in own if p.requires_grad),
    }
    if policy.value_head is not None:
        parts["value head"] = count(policy.value_head.parameters())
    if policy.critic is not None:
        parts["value model"] = count(policy.critic.parameters())
    if setup.reference is not None:
        cost = setup.reference_cost
        parts[f"reference ({setup.reference.kind})"] = 0 if cost is None else cost.num_bytes
    parts |= {f"reward {name}": size for name, size in rewards.items()}
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    parts["gradients and AdamW's moments"] = int(sum(training_state(trained)))
    return parts


def print_memory(parts: Mapping[str, int]) -> None:
    """A table that adds up."""
    table = Table("in memory", "MB", title="held through the run (activations come on top)")
    table.columns[1].justify = "right"
    for name, size in parts.items():
        table.add_row(name, f"{size / 1e6:,.1f}")
    table.add_section()
    table.add_row("together", f"{sum(parts.values()) / 1e6:,.1f}")
    console.print(table)
