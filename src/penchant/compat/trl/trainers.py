"""TRL's trainers, one a configuration."""

from __future__ import annotations

from typing import Any

from penchant.compat.trl import logs
from penchant.compat.trl.configs import DPOConfig, KTOConfig, RewardConfig
from penchant.compat.trl.objects import name_of, require_plain
from penchant.compat.trl.reference_free import CPOConfig, ORPOConfig
from penchant.compat.trl.trainer import Trainer
from penchant.core.errors import ConfigError


class ReferenceTrainer(Trainer):
    """What the trainers with a reference take beside.

    Args:
        ref_model: None: the model as it was before training, its adapter switched off, or copied.
    """

    def __init__(self, model: Any = None, ref_model: Any = None, **arguments: Any) -> None:
        self.ref_model = ref_model
        super().__init__(model, **arguments)

    def _own_keys(self) -> dict[str, Any]:
        if self.ref_model is None:
            return {}
        if not isinstance(self.ref_model, str):
            require_plain(self.ref_model, "ref_model")
        if self.ref_model is self.model:
            raise ConfigError("model and ref_model are one object; drop ref_model: a copy is made")
        return {"reference_model": name_of(self.ref_model)}

    def _reference(self) -> Any:
        return None if isinstance(self.ref_model, str) else self.ref_model


class DPOTrainer(ReferenceTrainer):
    """DPO and the losses of its family, on pairs."""

    config_class = DPOConfig


class KTOTrainer(ReferenceTrainer):
    """KTO, on labels; pairs are taken apart."""

    config_class = KTOConfig


class ORPOTrainer(Trainer):
    """ORPO, on pairs."""

    config_class = ORPOConfig


class CPOTrainer(Trainer):
    """CPO and SimPO, on pairs."""

    config_class = CPOConfig


class RewardTrainer(Trainer):
    """A reward model, on pairs."""

    config_class = RewardConfig
    names = logs.REWARD_NAMES
