"""From a configuration to data, model and reference that are ready for the loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding
from penchant.core.machine import map_large_blocks, release_memory, resolve_precision
from penchant.guards.checks.gather import find_faults, refuse_errors, take_snapshot
from penchant.models.load import (
    DTYPES,
    end_token_ids,
    is_adapter,
    load_causal_model,
    load_score_model,
    load_tokenizer,
    resolve,
)
from penchant.models.lora import add_lora
from penchant.models.memory import enable_checkpointing, training_bytes, usable_bytes
from penchant.models.reward_scorer import RewardScorer
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.models.size import saved_settings
from penchant.rl.rewards.make import find_rewards
from penchant.training.inputs import (
    RunData,
    make_tokeniser,
    require_margins,
    require_mismatches,
    tokenise,
)
from penchant.training.references import ReferenceMaker, measure_cost
from penchant.training.rollouts import (
    has_critic,
    make_collector,
    make_policy,
    memory_parts,
    num_sampled_steps,
    print_memory,
    probe_groups,
    require_one_process,
)
from penchant.training.setup import Setup, make_dataset_source

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group

logger = logging.getLogger("penchant")

# Records on which a quantised reference is held against the exact weights.
NUM_COMPARED = 4


def planned_steps(config: RunConfig, examples: Sequence[Any], *, world_size: int = 1) -> int:
    """Optimizer steps of a run on tokenised examples."""
    if config.spec.samples:
        return num_sampled_steps(config, len(examples))
    return make_dataset_source(config, examples, world_size=world_size).num_steps


def prepare(
    config: RunConfig,
    accelerator: Accelerator,
    run_data: RunData,
    *,
    model: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reference: Any = None,
    keep_reference: bool = False,
    rewards: Sequence[Any] | None = None,
    refuse: bool = False,
) -> Setup:
    """Load, tokenise, plan, and make the reference.

    Args:
        config, accelerator: of the run.
        run_data: as `read_run_data` returned it.
        model, tokenizer: in place of what `config.model` names.
        reference: likewise of `config.reference_model`, which must be set.
        keep_reference: with a cache, keep the reference in memory too, to compare with exactly.
        rewards: functions or names, in place of what the method's `reward` names.
        refuse: whether an error that the checks find ends it here.

    Raises:
        UserError: something named in the configuration cannot serve, or the checks refuse it.
    """
    if config.spec.samples:
        map_large_blocks()
    precision = resolve_precision(config.precision, accelerator.device)
    base = config.model if model is not None else resolve(config.model, config.cache_dir)
    tokenizer = tokenizer or load_tokenizer(
        base, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    if config.spec.samples:
        options: Any = config.options
        rewards = find_rewards(rewards or options.reward, options.reward_timeout)
    policy = load_policy(config, precision, base, model)
    critic = load_policy(config, precision, base) if has_critic(config) else None
    setup = _tokenised(config, base, tokenizer, policy, run_data, critic)
    setup.snapshot = take_snapshot(
        config,
        run_data,
        setup.train_set,
        setup.reports["training"],
        base=base,
        tokenizer=tokenizer,
        end_ids=setup.end_ids,
        settings=saved_settings(base, trust_remote_code=config.trust_remote_code)
        if model is None
        else model.config,
        num_steps=planned_steps(config, setup.train_set, world_size=accelerator.num_processes),
    )
    if refuse:
        refuse_errors(find_faults(setup.snapshot, setup.train_set))
    spare = _plan(config, accelerator, setup)
    maker = ReferenceMaker(
        config, setup.scorer, accelerator, precision, base, keep=keep_reference, loaded=reference
    )
    _make_reference(config, accelerator, setup, maker, spare)
    if config.spec.samples:
        _add_collector(config, accelerator, setup, rewards)
    return setup


def _plan(config: RunConfig, accelerator: Accelerator, setup: Setup) -> float:
    """Plan the policy's passes on its device; the bytes that they leave."""
    setup.scorer.to(accelerator.device)
    groups = _groups(config, setup.train_set)
    with accelerator.autocast():
        setup.plan = plan_scoring(
            setup.scorer, groups[:2], attention=config.attention, max_length=config.max_length
        ).describe()
        logger.info("%s", setup.plan)
        needed = training_bytes(setup.scorer, groups, config.per_device_train_batch_size)
    release_memory()
    return usable_bytes(setup.scorer) - needed


def _make_reference(
    config: RunConfig,
    accelerator: Accelerator,
    setup: Setup,
    maker: ReferenceMaker,
    spare: float,
) -> None:
    """The reference, and checkpointing, as the spare memory allows."""
    kind = maker.choose(spare)
    setup.checkpointing = _wants_checkpointing(
        config, spare - (maker.copy_bytes() if kind == "copy" else 0)
    )
    if setup.checkpointing:
        enable_checkpointing(setup.scorer.causal_model)
    examples = setup.train_set
    if kind == "cache":
        examples = [*setup.dataset_source(config, accelerator).visited(), *setup.eval_set]
    groups = _groups(config, examples)
    setup.reference = maker.make(kind, groups)
    if setup.reference is not None:
        with accelerator.autocast():
            sample = groups[:NUM_COMPARED] if not config.reference_model else []
            setup.reference_cost = measure_cost(setup.reference, setup.scorer, sample)
        logger.info("reference: %s%s", setup.reference.kind, setup.reference_cost.describe())


def _add_collector(
    config: RunConfig, accelerator: Accelerator, setup: Setup, rewards: Sequence[Any] | None
) -> None:
    require_one_process(accelerator)
    setup.collector = make_collector(config, accelerator, setup, rewards)
    setup.notes = [
        Finding("reward-setup", "warning", text, "see docs/rewards.md")
        for text in setup.collector.rewards.findings
    ]
    setup.memory_held = memory_parts(setup)
    print_memory(setup.memory_held)


def _groups(config: RunConfig, examples: Sequence[Any]) -> list[Group]:
    """What is laid out for the examples; answers that are not sampled yet at their longest."""
    if config.spec.samples:
        return probe_groups(examples, config.options.max_completion_length)  # type: ignore[attr-defined]
    return [example.group() for example in examples]


def _tokenised(
    config: RunConfig,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    policy: Any,
    run_data: RunData,
    critic: Any,
) -> Setup:
    tokeniser = make_tokeniser(config, tokenizer, policy)
    train_set, train_report = tokenise(run_data.train, tokeniser, "training")
    reports = {"training": train_report}
    eval_set: list[Any] = []
    if run_data.evaluation:
        eval_set, reports["held_out"] = tokenise(run_data.evaluation, tokeniser, "held-out")
    require_mismatches(config, train_set)
    if config.spec.needs(config.options).margins:
        require_margins([*train_set, *eval_set])
    return Setup(
        base=base,
        tokenizer=tokenizer,
        end_ids=end_token_ids(policy),
        train_set=train_set,
        eval_set=eval_set,
        eval_records=run_data.evaluation,
        reports=reports,
        scorer=make_scorer(config, tokenizer, policy, critic),
    )


def make_scorer(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, model: Any, critic: Any = None
) -> Scorer:
    """The scorer of a method's kind of model; `critic`: under a value head of its own."""
    assert tokenizer.pad_token_id is not None  # load_tokenizer falls back to EOS
    pad_token_id = int(tokenizer.pad_token_id)
    if config.spec.samples:
        return make_policy(config, model, pad_token_id, critic)
    if config.spec.model == "language":
        return Scorer(model, pad_token_id)
    model.config.pad_token_id = pad_token_id  # transformers finds the last token by it
    return RewardScorer(model, pad_token_id)


def load_policy(config: RunConfig, precision: str, base: str, model: Any = None) -> Any:
    """The model to train: all weights in fp32, or a frozen base with a fresh adapter.

    Args:
        config, precision: of the run.
        base: the resolved name.
        model: already loaded, in place of it.
    """
    dtype = DTYPES["fp32"]
    if config.dtype != "auto":
        dtype = DTYPES[config.dtype]
    elif config.lora_r and precision == "bf16" and not is_adapter(Path(base)):
        # An adapter that training starts from is merged: rounding would take back its small part.
        dtype = DTYPES["bf16"]
    scored = config.spec.model == "score"
    if model is None:
        load = load_score_model if scored else load_causal_model
        model = load(base, dtype=dtype, trust_remote_code=config.trust_remote_code)
    if not config.lora_r:
        return model.requires_grad_(True)
    return add_lora(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        task_type="SEQ_CLS" if scored else "CAUSAL_LM",
    )


def _wants_checkpointing(config: RunConfig, spare_bytes: float) -> bool:
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing == "on"
    return spare_bytes < 0
