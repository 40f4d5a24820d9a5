"""The libraries of the extra `data`, asked for when they are needed."""

from __future__ import annotations

from importlib.util import find_spec

from penchant.errors import ConfigError

LIBRARIES = {
    "loky": "loky",
    "numpy": "numpy",
    "py3langid": "py3langid",
    "rensa": "rensa",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}


def require_libraries() -> None:
    """Refuse to start without what inspecting imports.

    Raises:
        ConfigError: a library is missing; the message names the extra.
    """
    missing = [package for module, package in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"inspecting data needs {', '.join(missing)}; pip install 'penchant[data]'"
        )
