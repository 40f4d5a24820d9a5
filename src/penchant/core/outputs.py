"""Whether a file can be written, asked before the work whose result it is to hold."""

from __future__ import annotations

from pathlib import Path

from penchant.core.atomic import partial_of
from penchant.core.errors import ConfigError


def require_writable(file: Path, option: str) -> None:
    """Make the folder of a file, and try that a file can be made or replaced there.

    Args:
        file: that is written after the work.
        option: by which the user named it, for the message.

    Raises:
        ConfigError: it cannot be.
    """
    trial = partial_of(file)
    try:
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; set {option} to a file")
        file.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise unwritable(file, error, option) from error


def unwritable(file: Path, error: OSError, option: str) -> ConfigError:
    """What is said of a file that could not be written."""
    return ConfigError(f"cannot write {file}: {error.strerror or error}; set {option}")
