"""What a judge is: a model behind an endpoint, with a rubric and a scale, in a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penchant.core.endpoint import Endpoint, EndpointSettings
from penchant.core.errors import ConfigError

PREFIX = "judge:"


class JudgeSettings(BaseModel):
    """The keys of a judge's YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str | None = None
    rubric: Path | None = Field(None, description="text with {prompt} and {completion}")
    scale: tuple[float, float] = (1.0, 10.0)
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(8, ge=1)
    retries: int = Field(5, ge=0)
    timeout: float = Field(60.0, gt=0)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    cache: Path | None = None
    price_input: float = Field(0.0, ge=0)
    price_output: float = Field(0.0, ge=0)
    extra_body: dict[str, object] = {}

    def endpoint(self) -> Endpoint:
        """What the judge is asked through."""
        own = {"rubric", "scale"}
        return Endpoint(EndpointSettings(**self.model_dump(exclude=own)))


def read_rubric(file: Path, places: Sequence[str] = ("{prompt}", "{completion}")) -> str:
    """The text of a rubric.

    Raises:
        ConfigError: it cannot be read, or lacks a place for what is judged.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the rubric {file} could not be read: {error}") from None
    missing = [place for place in places if place not in text]
    if missing:
        raise ConfigError(
            f"the rubric {file} has no {' and no '.join(missing)}: what is judged would not be "
            "shown; write it where it belongs"
        )
    return text


def fill_rubric(rubric: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    """A rubric with its places filled, as a chat; what stands in a value is never a place."""
    places = "|".join(map(re.escape, values))
    text = re.sub(rf"\{{({places})\}}", lambda match: values[match[1]], rubric)
    return [{"role": "user", "content": text}]


def read_settings(place: str) -> JudgeSettings:
    """Settings of a judge at an address, or in a YAML file whose paths are relative to it.

    Raises:
        ConfigError: the file cannot be read, or has a wrong key or value.
    """
    if place.startswith(("http://", "https://")):
        return JudgeSettings.model_validate({"url": place})
    file = Path(place).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"{PREFIX}{place}: no such file; write {PREFIX}http://host:port/v1, or name a YAML "
            "file with url, model and rubric"
        )
    import yaml

    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings = JudgeSettings.model_validate(keys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        known = ", ".join(JudgeSettings.model_fields)
        raise ConfigError(f"{file}: {'; '.join(lines)}; known keys are {known}") from None
    beside = {
        key: file.parent / path
        for key in ("rubric", "cache")
        if (path := getattr(settings, key)) is not None
    }
    return settings.model_copy(update=beside)
