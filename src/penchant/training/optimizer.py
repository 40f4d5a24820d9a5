"""Optimizer, schedule and random states, and what a checkpoint keeps of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.core.team import Team


def make_optimizer(
    parameters: dict[str, torch.nn.Parameter], config: RunConfig
) -> torch.optim.Optimizer:
    """AdamW, fused where the device has it; vectors (norms, biases) do not decay."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    device = next(iter(parameters.values())).device.type
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.peak_learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=device in ("cpu", "cuda"),
    )


def make_scheduler(optimizer: torch.optim.Optimizer, config: RunConfig, num_steps: int) -> Any:
    """One of transformers' schedules over the whole run."""
    from transformers import get_scheduler

    return get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=math.ceil(num_steps * config.warmup_ratio),
        num_training_steps=num_steps,
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """An optimizer's state by parameter name, for a checkpoint."""
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    tensors: dict[str, torch.Tensor],
) -> None:
    """The inverse of `optimizer_tensors`: what it does not name starts from nothing."""
    optimizer.state.clear()
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        # AdamW keeps its step counter where the fused kernel wants it: with the parameter.
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


def random_states(team: Team) -> dict[str, torch.Tensor]:
    """Of every process: that of the first under its plain names, of others after their rank."""
    return {
        f"{rank}/{name}" if rank else name: state
        for rank, states in enumerate(team.gather(random_state()))
        for name, state in states.items()
    }


def set_random_states(states: dict[str, torch.Tensor], team: Team, step: int) -> None:
    """The inverse of `random_states`; a process that the saved run lacked is seeded by its rank."""
    prefix = f"{team.rank}/" if team.rank else ""
    own = {name: s for name in ("cpu", "cuda") if (s := states.get(prefix + name)) is not None}
    if own:
        set_random_state(own)
    else:
        torch.manual_seed(1_000_003 * step + team.rank)


def random_state() -> dict[str, torch.Tensor]:
    """Of torch, on the CPU and on the GPU in use."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, torch.Tensor]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
