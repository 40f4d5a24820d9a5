"""TRL's trainers on Penchant's engine: change the import line, keep the script.

An argument that is accepted has its effect, or changes no result, which the log says; one that
cannot have its effect is refused by name.

>>> from penchant.compat.trl import DPOConfig, DPOTrainer
>>> config = DPOConfig(output_dir="dpo_output", beta=0.1, max_length=1024)
>>> trainer = DPOTrainer(model, args=config, train_dataset=pairs, processing_class=tokenizer)
>>> trainer.train()
"""

from __future__ import annotations

from typing import Any

from penchant.compat.trl.configs import DPOConfig, KTOConfig, RewardConfig
from penchant.compat.trl.online import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from penchant.compat.trl.ppo.config import PPOConfig
from penchant.compat.trl.ppo.model import AutoModelForCausalLMWithValueHead
from penchant.compat.trl.ppo.trainer import PPOTrainer
from penchant.compat.trl.reference_free import CPOConfig, ORPOConfig
from penchant.compat.trl.trainers import (
    CPOTrainer,
    DPOTrainer,
    KTOTrainer,
    ORPOTrainer,
    RewardTrainer,
)

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "ORPOConfig",
    "ORPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
]


def __getattr__(name: str) -> Any:
    if name.endswith(("Trainer", "Config")):
        raise ImportError(f"penchant.compat.trl has no {name}; it has {', '.join(__all__)}")
    raise AttributeError(f"module 'penchant.compat.trl' has no attribute {name!r}")
