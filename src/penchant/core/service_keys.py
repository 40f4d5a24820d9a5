"""The keys by which a service over HTTP is named: an address, or a YAML file that says more."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penchant.core.errors import ConfigError


class ServiceKeys(BaseModel):
    """The keys that every service's YAML file may have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Keys that are paths, relative to the file that has them.
    PATHS: ClassVar[tuple[str, ...]] = ("cache",)

    url: str
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(8, ge=1)
    retries: int = Field(5, ge=0)
    timeout: float = Field(60.0, gt=0)
    cache: Path | None = None


Keys = TypeVar("Keys", bound=ServiceKeys)


def read_keys(place: str, kind: type[Keys], missing: str) -> Keys:
    """The keys of a service at an address, or in a YAML file whose paths are relative to it.

    Args:
        place: what the user named.
        kind: of service.
        missing: what to say of a file that is not there.

    Raises:
        ConfigError: the file cannot be read, or has a wrong key or value.
    """
    if place.startswith(("http://", "https://")):
        return kind.model_validate({"url": place})
    file = Path(place).expanduser()
    if not file.is_file():
        raise ConfigError(missing)
    import yaml

    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings = kind.model_validate(keys)
    except OSError as error:
        raise ConfigError(
            f"{file} could not be read: {error.strerror}; see to its permissions"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    except ValidationError as error:
        lines = [_said(one["loc"], one["msg"]) for one in error.errors()]
        own = [name for name in kind.model_fields if name not in ServiceKeys.model_fields]
        known = ", ".join(dict.fromkeys(["url", *own, *kind.model_fields]))
        raise ConfigError(f"{file}: {'; '.join(lines)}; known keys are {known}") from None
    beside = {
        key: file.parent / path
        for key in kind.PATHS
        if (path := getattr(settings, key)) is not None
    }
    return settings.model_copy(update=beside)


def _said(keys: tuple[int | str, ...], message: str) -> str:
    """What is wrong with a key; with none alone, where they do not go together."""
    text = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, keys))}: {text}" if keys else text
