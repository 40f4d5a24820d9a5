"""Runs whose processes divide the weights among them: what is asked for, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import AutocastKwargs

from penchant.config.peft import from_passes
from penchant.core.errors import ConfigError
from penchant.core.team import launched, launched_here
from penchant.models.locate import is_adapter
from penchant.models.sharding import empty, hand_out, make_mesh, place_buffers, shard
from penchant.training.accelerator import sharding_of, team_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.models.scoring import Scorer


CODES = "quantization: codes of weights are not sharded; set quantization to none"


def require_divisible(
    config: RunConfig, base: str, settings: Any, precision: str, *, sharded: bool = True
) -> None:
    """Refuse what sharded weights cannot serve, before a weight is loaded.

    Args:
        config: of the run.
        base: the resolved name of its model; settings: its configuration as it was saved.
        precision: of the arithmetic.
        sharded: whether there are processes that divide them.

    Raises:
        ConfigError: with the key and what to set it to.
    """
    if not sharded:
        raise ConfigError(
            "offload: only what several processes divide among them is kept in main memory; launch "
            "several and set sharding to full, or set offload to false"
        )
    of_model = {
        CODES: getattr(settings, "quantization_config", None) is not None,
        "precision fp16: its gradient scaler does not know sharded gradients; set bf16": (
            precision == "fp16"
        ),
        f"model: {base} is an adapter, which LoRA would be merged into at the end; merge "
        "it first: penchant merge": bool(config.lora_r) and is_adapter(Path(base)),
    }
    if reason := why_indivisible(config) or _first(of_model):
        raise ConfigError(f"sharding {config.sharding}, {reason}, or sharding to off")


def why_indivisible(config: RunConfig) -> str | None:
    """Why sharded weights cannot serve a run, as far as its keys say."""
    engine = getattr(config.options, "generation", "auto")
    of_keys = {
        CODES: config.quantization != "none",
        "sync_ref_model of an adapter: parts in main memory cannot meet; set offload to false": (
            config.sync_ref_model and config.lora_r > 0 and config.offload
        ),
        f"optim {config.optim}: it is not for parts of weights; set optim to adamw or sgd": (
            config.optim not in ("adamw", "sgd")
        ),
        "dtype bf16: all weights in it are rounded at random, whole; set dtype to fp32": (
            config.rounds_stochastically
        ),
        "peft: init_lora_weights makes passes before weights are divided; set another": (
            from_passes(config.peft)
        ),
        f"generation {engine}: it needs whole weights; set generation to cached or vllm-server": (
            engine not in ("auto", "cached", "vllm-server")
        ),
    }
    return _first(of_keys)


def _first(reasons: dict[str, bool]) -> str | None:
    """The first reason that holds."""
    return next((reason for reason, holds in reasons.items() if holds), None)


def num_parts(config: RunConfig, num_processes: int, node_size: int | None = None) -> int:
    """Into how many parts the processes of a run divide each copy of the weights.

    Args:
        config: of the run, with `sharding` full or hybrid.
        num_processes: of the run.
        node_size: of these, the ones on a node; default: as the launcher of this process says.

    Raises:
        ConfigError: the size of a node decides, and is not known, or nodes would differ.
    """
    if config.sharding == "full":
        return num_processes
    if node_size is None and launched().size == num_processes:
        node_size = launched_here()
    if node_size is None:
        raise ConfigError(
            "sharding hybrid: a process holds its part of what its node holds; set node_size to "
            "the number of processes on a node"
        )
    if node_size < 1 or num_processes % node_size:
        raise ConfigError(
            f"sharding hybrid needs nodes of equal size, and {num_processes} processes are not a "
            f"multiple of node_size {node_size}; set another"
        )
    return node_size


def divide(scorer: Scorer, config: RunConfig, accelerator: Accelerator) -> None:
    """Divide a scorer's weights, those of the first process, among all, on their devices.

    Raises:
        ConfigError: nodes of different sizes, where each is to hold all weights.
    """
    sharding, size = sharding_of(config, accelerator), accelerator.num_processes
    try:
        mesh = make_mesh(accelerator.device, sharding, size, launched_here())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # The cache of autocast would keep a copy of every weight that a pass has had whole.
    accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    team, device = team_of(accelerator), accelerator.device
    whole = {name: p.detach() for name, p in scorer.named_parameters()} if team.leads else {}
    dtypes = team.agree({name: weight.dtype for name, weight in whole.items()})
    every = scorer.named_buffers(remove_duplicate=False)  # the others have them apart
    buffers = team.agree({name: one.cpu() for name, one in every} if team.leads else {})
    if not team.leads:
        empty(scorer, dtypes)
    shard(scorer, mesh, offload=config.offload)
    scorer.pass_device = device
    if not team.leads:
        scorer.to_empty(device="cpu" if config.offload else device)
        place_buffers(scorer, buffers, device)
    hand_out(scorer, whole, device)
