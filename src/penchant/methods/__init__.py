"""Every method, by name. A method is data plus a pure function; the engine knows none of them."""

from __future__ import annotations

from penchant.methods.aot import AOT
from penchant.methods.apo_down import APO_DOWN
from penchant.methods.apo_zero import APO_ZERO
from penchant.methods.base import (
    Facts,
    LabelInputs,
    LossOutput,
    Method,
    MethodOptions,
    Needs,
    PairInputs,
    RolloutInputs,
    ScoreInputs,
)
from penchant.methods.bco import BCO
from penchant.methods.cpo import CPO
from penchant.methods.discopop import DISCOPOP
from penchant.methods.dpo import DPO
from penchant.methods.exo import EXO
from penchant.methods.grpo import GRPO
from penchant.methods.ipo import IPO
from penchant.methods.kto import KTO
from penchant.methods.nca import NCA
from penchant.methods.orpo import ORPO
from penchant.methods.ppo import PPO
from penchant.methods.reward import REWARD
from penchant.methods.rloo import RLOO
from penchant.methods.robust import ROBUST
from penchant.methods.sigmoid_norm import SIGMOID_NORM
from penchant.methods.simpo import SIMPO
from penchant.methods.sppo import SPPO

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(DPO, IPO, KTO, ORPO, SIMPO, CPO, REWARD, PPO, GRPO, RLOO),
        # The rest of DPO's family
        *(ROBUST, EXO, NCA, BCO, SPPO, AOT, APO_ZERO, APO_DOWN, DISCOPOP, SIGMOID_NORM),
    )
}

__all__ = [
    "METHODS",
    "Facts",
    "LabelInputs",
    "LossOutput",
    "Method",
    "MethodOptions",
    "Needs",
    "PairInputs",
    "RolloutInputs",
    "ScoreInputs",
]
