"""Files of flat keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.config.sections import RECORDED
from penchant.core.errors import ConfigError


def method_of(file: Path) -> str:
    """The method that a YAML file of keys is for.

    Raises:
        ConfigError: it names none, or cannot be read.
    """
    method = read_yaml(file).get("method")
    if method is None:
        raise ConfigError(
            f"{file} names no method; add a line such as 'method: dpo' to it, or name the method "
            "before --config"
        )
    return str(method)


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys in a YAML file, without what a run has recorded beside them.

    Raises:
        ConfigError: it is not there, or holds no flat keys.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such configuration file: {file}") from None
    except OSError as error:
        raise ConfigError(f"{file} could not be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold flat keys (beta: 0.1), got {type(content).__name__}")
    return {key: value for key, value in content.items() if key not in RECORDED}
