"""Where a model is: the folder or hub id behind what the user named."""

from __future__ import annotations

from pathlib import Path

from penchant.core.errors import ModelError
from penchant.core.machine import default_cache_dir


def resolve(name: str, cache_dir: Path | None = None) -> str:
    """The folder or hub id behind what the user named.

    A run directory stands for its `model/`; a .gguf file for its converted copy in the cache.

    Raises:
        ModelError: a path that does not exist, or a folder without a model.
    """
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"no such file: {name}")
        from penchant.models.gguf import converted

        return str(converted(path, cache_dir or default_cache_dir()))
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return name  # a hub id
        raise ModelError(
            f"no such model: {name} is neither a folder nor a hub id; give a folder with "
            "config.json, or owner/name as the hub has it"
        )
    if (path / "model" / "config.json").exists() or is_adapter(path / "model"):
        path = path / "model"
    if not (path / "config.json").exists() and not is_adapter(path):
        raise ModelError(
            f"{name} holds no model: neither config.json nor adapter_config.json is there"
        )
    # Adapters and configurations keep this name: it must mean the same from any folder.
    return str(path.absolute())


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / "adapter_config.json").exists()
