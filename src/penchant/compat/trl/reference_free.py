"""Configurations of TRL's trainers without a reference: ORPO, CPO and SimPO."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from penchant.compat.trl.configs import Chosen, OfflineConfig
from penchant.config.mistakes import nearest
from penchant.core.errors import ConfigError


class ORPOConfig(OfflineConfig):
    """Of `ORPOTrainer`."""

    beta: float = 0.1

    def chosen(self) -> Chosen:
        """The method, and its options."""
        return self._options_of("orpo")


CPO_LOSSES = ("sigmoid", "hinge", "ipo", "simpo", "alphapo")


class CPOConfig(OfflineConfig):
    """Of `CPOTrainer`: CPO, SimPO and AlphaPO."""

    options: ClassVar[tuple[str, ...]] = ("beta", "label_smoothing", "cpo_alpha", "alpha")

    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    cpo_alpha: float = 1.0
    simpo_gamma: float = Field(0.5, ge=0)
    alpha: float = 0.0

    def chosen(self) -> Chosen:
        """The method, and its options.

        Raises:
            ConfigError: an argument of SimPO with another loss.
        """
        if self.loss_type not in CPO_LOSSES:
            raise ConfigError(
                f"unknown loss_type {self.loss_type!r}; {nearest(self.loss_type, CPO_LOSSES)}"
            )
        # TRL subtracts simpo_gamma / beta from what it multiplies by beta: it is the paper's gamma.
        if self.loss_type == "simpo":
            return self._options_of("simpo", gamma=self.simpo_gamma)
        if self.loss_type == "alphapo":
            if "cpo_alpha" in self.model_fields_set and self.cpo_alpha != 0:
                raise ConfigError("alphapo has no cpo_alpha; set loss_type='simpo' and alpha")
            return self._options_of("simpo", gamma=self.simpo_gamma, cpo_alpha=0.0)
        if self.simpo_gamma != 0.5:
            raise ConfigError("simpo_gamma is the margin of SimPO; set loss_type='simpo'")
        return self._options_of("cpo", loss_type=self.loss_type)
