"""What a person types, as the parser takes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penchant.config.files import method_of
from penchant.core.errors import ConfigError
from penchant.methods import METHODS

# Commands whose next word is a method.
OF_METHODS = ("train", "check", "sweep", "config")
YAML = (".yaml", ".yml")


def as_parsed(words: Sequence[str]) -> list[str]:
    """The words with the keys' own names, and with the method that a YAML file names.

    `--max-length` is `--max_length`; `train recipe.yaml` and `train --config recipe.yaml` are
    `train dpo --config recipe.yaml`.

    Raises:
        ConfigError: the file cannot be read or names no method, or two files are given.
    """
    typed = [_underscored(word) for word in words]
    if typed[:1] and typed[0] in OF_METHODS:
        return [typed[0], *_with_method(typed[1:])]
    return typed


def _underscored(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if flag[:2] == "--" else word


def _with_method(words: list[str]) -> list[str]:
    file = _config(words)
    if words and Path(words[0]).suffix in YAML:
        if file is not None:
            raise ConfigError(f"{words[0]} and --config {file} are two files of keys; give one")
        return [_method(words[0]), "--config", *words]
    if file is not None and words[0].startswith("--"):
        return [_method(file), *words]
    return words


def _config(words: Sequence[str]) -> str | None:
    """What `--config` is given, if it stands there."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            return value if equals else next(iter(words[i + 1 :]), None)
    return None


def _method(file: str) -> str:
    """Kept from the parser where it is none: that knows only methods, and not the file."""
    method = method_of(Path(file))
    if method.replace("-", "_") not in METHODS:
        raise ConfigError(
            f"{file}: unknown method {method!r}; penchant methods lists those that there are"
        )
    return method.replace("-", "_")
