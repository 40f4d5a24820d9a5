"""How the processes of a run were launched: what is asked for, and what cannot train."""

from __future__ import annotations

import logging
import os

from penchant.core.errors import ConfigError

logger = logging.getLogger("penchant")

OTHERS = {
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "tensor or context parallelism",
}


def asks_for_sharding() -> bool:
    """Whether `accelerate launch` asks for FSDP; its variable is taken away.

    Raises:
        ConfigError: it asks for what training cannot do, by name.
    """
    for name, called in OTHERS.items():
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise ConfigError(
                f"the processes were launched with {called}, which is not supported; launch "
                "without it (accelerate launch --multi_gpu, or torchrun), and where a model does "
                "not fit one device, set sharding to full"
            )
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError(
            "the processes were launched with FSDP that offloads weights to main memory; launch "
            "without fsdp_offload_params, and set sharding to full and offload to true"
        )
    asked = _is_set("ACCELERATE_USE_FSDP")
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # Accelerate and transformers would shard as well
    if asked:
        logger.info("launched with FSDP: sharding auto is full; its other settings are not read")
    return asked


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def apart(launched: int, seen: int) -> ConfigError:
    """That processes were launched together and do not see each other."""
    return ConfigError(
        f"{launched} processes were launched, but this one sees {seen}: each would train alone, in "
        "one folder; on a machine without a GPU set ACCELERATE_USE_CPU=true, or unset WORLD_SIZE "
        "where a single process is meant"
    )
