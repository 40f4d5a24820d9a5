"""Optimizer, schedule and random states, and what a checkpoint keeps of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from penchant.models.memory import own_part

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.core.team import Team
    from penchant.models.scoring import Scorer


def make_optimizer(scorer: Scorer, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer that `optim` names, of all parameters that a scorer trains."""
    return optimizer_of([p for p in scorer.parameters() if p.requires_grad], config, scorer)


def optimizer_of(
    parameters: Iterable[torch.nn.Parameter],
    config: RunConfig,
    scorer: Scorer,
    stands_for: Mapping[int, int] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of some of a scorer's parameters: AdamW is fused where the device has that.

    Vectors (norms, biases) do not decay.

    Args:
        parameters: to train; config: of the run; scorer: whose they are.
        stands_for: by the id of a parameter that is none of them, that of the one it stands for.
    """
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optim != "adamw" or config.rounds_stochastically:
        from penchant.training.optimizers import Places, make

        return make(groups, config, Places(scorer, stands_for or {}))
    device = every[0].device.type
    return torch.optim.AdamW(
        groups,
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


def schedule_state(scheduler: Any) -> dict[str, Any]:
    """A schedule's state with numbers in place of tensors, for a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        return float(value) if torch.is_tensor(value) else value

    return {name: plain(value) for name, value in scheduler.state_dict().items()}


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """An optimizer's state by parameter name, for a checkpoint.

    Numbers become tensors, and tensors that are made of several their parts. What parameters
    share, such as bitsandbytes' tables of codes, is kept once.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            for path, tensor in parts_of(f"{name}/{key}", value):
                place = own_part(tensor).data_ptr()
                if place and place in seen:  # an empty part has no place
                    continue
                seen.add(place)
                tensors[path] = tensor.detach()
    return tensors


def parts_of(path: str, value: Any) -> list[tuple[str, torch.Tensor]]:
    """The plain tensors that a value of an optimizer's state is made of, by path."""
    if not torch.is_tensor(value):
        return [(path, torch.tensor(value))]
    plain = type(value) is torch.Tensor or hasattr(value, "full_tensor")
    if plain or not hasattr(value, "__tensor_flatten__"):
        return [(path, value)]
    return [(f"{path}/{name}", getattr(value, name)) for name in value.__tensor_flatten__()[0]]


def random_states(team: Team) -> dict[str, torch.Tensor]:
    """Of every process: that of the first under its plain names, of others after their rank."""
    return {
        f"{rank}/{name}" if rank else name: state
        for rank, states in enumerate(team.gather(random_state()))
        for name, state in states.items()
    }


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
