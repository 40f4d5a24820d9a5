"""Every method, by name. A method is data plus a pure function; the engine knows none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from penchant.methods.base import (
    Facts,
    LossOutput,
    Method,
    MethodOptions,
    Needs,
    PairInputs,
)

NAMES = (
    *("dpo", "ipo", "kto", "orpo", "simpo", "cpo", "reward", "ppo", "grpo", "rloo"),
    # The rest of DPO's family
    *("robust", "exo", "nca", "bco", "sppo", "aot", "apo_zero", "apo_down", "discopop"),
    *("sigmoid_norm", "mpo", "sft", "online_dpo", "distill"),
)


class _Methods(Mapping[str, Method]):
    """Methods by name, in the order of `NAMES`; each is imported once it is asked for.

    The method `dpo` is `DPO` of the module `dpo`.
    """

    def __getitem__(self, name: str) -> Method:
        if name not in NAMES:
            raise KeyError(name)
        method: Method = getattr(import_module(f"{__name__}.{name}"), name.upper())
        return method

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


METHODS: Mapping[str, Method] = _Methods()

__all__ = [
    "METHODS",
    "Facts",
    "LossOutput",
    "Method",
    "MethodOptions",
    "Needs",
    "PairInputs",
]
