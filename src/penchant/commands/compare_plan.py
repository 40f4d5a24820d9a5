"""The points of a comparison: which keys each has, and which cannot differ between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.commands.points import DATA_KEYS, combinations, point_config, point_name
from penchant.config.files import read_yaml
from penchant.config.keys import RunConfig
from penchant.config.mistakes import nearest
from penchant.core.errors import ConfigError
from penchant.methods import METHODS

# All points are measured on the same pairs, against the same start.
FIXED = (
    *DATA_KEYS,
    *("model", "seed", "max_length", "max_prompt_length", "chat_template", "loss_on_turns"),
    *("max_new_tokens", "monitor_reward", "quantization", "dtype"),
)


@dataclass(frozen=True)
class Planned:
    """A point to train: the keys that vary, and all of them."""

    method: str
    values: dict[str, Any]
    config: RunConfig


def plan(
    methods: Sequence[str],
    vary: Mapping[str, Sequence[Any]],
    keys: Mapping[str, Any],
    file: Path | None,
) -> list[Planned]:
    """The points of a comparison, method by method.

    Args:
        methods, vary, keys: as for `compare`.
        file: a YAML file of flat keys, over which `keys` win.

    Raises:
        ConfigError: a wrong key or value, or one that would make points incomparable.
    """
    _require_comparable(methods, [*vary, *(key for key in keys if "." in key)])
    given = {**(read_yaml(file) if file else {}), **keys}
    named = given.pop("method", None)
    if named is not None and named not in methods:
        raise ConfigError(f"{file} is for {named}, which is not compared; add it to methods")
    output = Path(given.pop("output", "compare"))
    planned = []
    for method in methods:
        own, varied = _of_method(method, methods, given), _of_method(method, methods, vary)
        own |= {"unpair": True} if METHODS[method].data == "labels" else {}
        own = {key: value for key, value in own.items() if key not in varied}
        for values in combinations(varied) if varied else [{}]:
            where = output / point_name({"method": method, **values}).removeprefix("method=")
            point = point_config(method, {**own, **values, "output": where}, None)
            planned.append(Planned(method, values, point))
    if not (planned[0].config.eval_data or planned[0].config.train_fraction):
        raise ConfigError("methods are compared on held-out pairs; set train_fraction or eval_data")
    return planned


def _require_comparable(methods: Sequence[str], differing: Sequence[str]) -> None:
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}; {nearest(method, METHODS)}")
        if METHODS[method].samples or METHODS[method].model == "score":
            raise ConfigError(
                f"{method} learns no policy from pairs; compare takes methods that do, and "
                "penchant sweep varies the keys of any one"
            )
    if len(set(methods)) < len(methods) or not methods:
        raise ConfigError(f"methods are {', '.join(methods) or 'none'}; give each once")
    if not any(METHODS[method].data == "pairs" for method in methods):
        raise ConfigError("no method learns from pairs; penchant sweep varies the keys of one")
    for key in differing:
        method, dot, name = key.rpartition(".")
        if dot and method not in methods:
            raise ConfigError(f"{key} is of no method that is compared; {nearest(method, methods)}")
        if name in FIXED:
            raise ConfigError(
                f"{name} cannot differ between points: all are measured on the same held-out "
                "pairs, against the same start"
            )


def _of_method(method: str, methods: Sequence[str], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a method has: its own win, and options that only others have are left out."""
    others = {name for one in methods for name in METHODS[one].options.model_fields}
    foreign = others - set(METHODS[method].options.model_fields)
    common = {key: value for key, value in keys.items() if "." not in key and key not in foreign}
    prefix = f"{method}."
    own = {key.removeprefix(prefix): v for key, v in keys.items() if key.startswith(prefix)}
    return {**common, **own}
