"""What several points start from: read and checked for all of them, then loaded for one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_seed

from penchant.config.keys import RunConfig
from penchant.guards.checks.gather import checked
from penchant.guards.checks.snapshot import Snapshot
from penchant.models.memory import own_part
from penchant.training.accelerator import make_accelerator
from penchant.training.folder import completed
from penchant.training.inputs import read_inputs
from penchant.training.prepare import prepare
from penchant.training.setup import Inputs, RunData, Setup

logger = logging.getLogger("penchant")

# Keys of the loop and the loss; a point that differs in any other is loaded again.
LIGHT_KEYS = {
    "output", "resume", "report_to", "learning_rate", "num_train_epochs", "lr_scheduler_type",
    "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "gradient_accumulation_steps", "eval_steps", "save_steps", "save_minutes", "logging_steps",
    "max_new_tokens", "load_best_model_at_end", "save_total_limit", "eval_samples",
    "eval_on_start", "merge", "silence", "on_finding", "monitor_steps", "monitor_share",
    "monitor_prompts", "monitor_length",
}  # fmt: skip


def heavy_keys(config: RunConfig) -> dict[str, Any]:
    """The keys that decide what is loaded."""
    options = config.spec.options.model_fields
    # What samples is made with its options; what reads pairs or labels is not.
    light = LIGHT_KEYS if config.spec.samples else LIGHT_KEYS | set(options)
    values = {key: value for key, value in config.flat().items() if key not in light}
    # Some options change what the reference is asked for.
    return {**values, "needs": config.spec.needs(config.options)}


@dataclass(frozen=True)
class Start:
    """What points that differ in light keys only start from.

    Attributes:
        keys: those that decide what is loaded.
        setup: of these points; snapshot: what the checks saw of the first.
        weights: at first, of what the points change.
    """

    keys: dict[str, Any]
    setup: Setup
    snapshot: Snapshot
    weights: dict[str, torch.Tensor]


def require_starts(points: Iterable[tuple[RunConfig, RunData]]) -> None:
    """Refuse what a later point cannot start from, before the first one is trained.

    Of the points with one start only the first is looked at. The first start of all is not: it is
    loaded next, and is refused there.

    Args:
        points: with their data, in their order; those that are trained already are passed over.

    Raises:
        UserError: anything that would stop such a point once it is reached.
    """
    seen: list[dict[str, Any]] = []
    for config, run_data in points:
        if completed(config) is not None or (keys := heavy_keys(config)) in seen:
            continue
        if seen:
            logger.info("%s starts from something else, which is looked at", config.output.name)
            _read(config, run_data, make_accelerator(config.precision).num_processes)
        seen.append(keys)


def _read(
    config: RunConfig,
    run_data: RunData,
    num_processes: int,
    monitor_rewards: Sequence[Any] | None = None,
) -> tuple[Inputs, Snapshot]:
    """What needs no weight of what a point starts from."""
    inputs = read_inputs(
        config, run_data, monitor_rewards=monitor_rewards, num_processes=num_processes
    )
    return inputs, checked(config, inputs, num_processes)


def load_start(
    config: RunConfig, run_data: RunData, monitor_rewards: Sequence[Any] | None = None
) -> Start:
    """Load what a point starts from.

    Args:
        config: of the point.
        run_data: what it learns from.
        monitor_rewards: what `monitor_reward` names, where an earlier start has found it.
    """
    accelerator = make_accelerator(config.precision)
    set_seed(config.seed)
    inputs, snapshot = _read(config, run_data, accelerator.num_processes, monitor_rewards)
    setup = prepare(config, accelerator, inputs, keep_reference=True)
    changed = changed_by(config, setup).items()
    weights = {n: own_part(p.detach()).to("cpu", copy=True) for n, p in changed}
    return Start(heavy_keys(config), setup, snapshot, weights)


def changed_by(config: RunConfig, setup: Setup) -> dict[str, torch.Tensor]:
    """What a run changes of what it works with, in place, by name."""
    trained: dict[str, torch.Tensor] = {**setup.trained()}
    if not config.sync_ref_model:
        return trained
    from penchant.training.syncing import following

    return {**trained, **following(setup)}
