"""Every method, by name. A method is data plus a pure function; the engine knows none of them."""

from __future__ import annotations

from penchant.methods.base import Facts, LossOutput, Method, MethodOptions, PairInputs
from penchant.methods.dpo import DPO
from penchant.methods.ipo import IPO

METHODS: dict[str, Method] = {method.name: method for method in (DPO, IPO)}

__all__ = ["METHODS", "Facts", "LossOutput", "Method", "MethodOptions", "PairInputs"]
