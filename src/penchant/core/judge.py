"""What a judge is: a model behind an endpoint, with a rubric and a scale, in a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from penchant.core.endpoint import TIMEOUT, Endpoint, EndpointSettings
from penchant.core.errors import ConfigError
from penchant.core.service_keys import ServiceKeys, read_keys

PREFIX = "judge:"


class JudgeSettings(ServiceKeys):
    """The keys of a judge's YAML file."""

    PATHS: ClassVar[tuple[str, ...]] = ("rubric", "cache")

    model: str | None = None
    rubric: Path | None = Field(None, description="text with {prompt} and {completion}")
    pairwise: bool = Field(False, description="compare the answers to one prompt, as a reward")
    scale: tuple[float, float] = (1.0, 10.0)
    timeout: float = Field(TIMEOUT, gt=0)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    price_input: float = Field(0.0, ge=0)
    price_output: float = Field(0.0, ge=0)
    extra_body: dict[str, object] = Field(default_factory=dict)

    @field_validator("scale")
    @classmethod
    def _rises(cls, scale: tuple[float, float]) -> tuple[float, float]:
        low, high = scale
        if not low < high:
            raise ValueError(
                f"must be the lowest score, then the highest, as [1, 10], got [{low:g}, {high:g}]"
            )
        return scale

    @model_validator(mode="after")
    def _compares_without_scale(self) -> Self:
        if self.pairwise and "scale" in self.model_fields_set:
            raise ValueError("scale is of scores, and pairwise gives none; drop one of them")
        return self

    def endpoint(self) -> Endpoint:
        """What the judge is asked through."""
        own = {"rubric", "scale", "pairwise"}
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
        hint = ", or set pairwise: true in the judge's file" if _compares(text, missing) else ""
        raise ConfigError(
            f"the rubric {file} has no {' and no '.join(missing)}: what is judged would not be "
            f"shown; write it where it belongs{hint}"
        )
    return text


def _compares(rubric: str, missing: Sequence[str]) -> bool:
    """Whether a rubric for scores is one for comparisons."""
    return "{completion}" in missing and "{completion_a}" in rubric


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
    place = place.removeprefix(PREFIX)
    missing = (
        f"{PREFIX}{place}: no such file; write {PREFIX}http://host:port/v1, or name a YAML file "
        "with url, model and rubric"
    )
    return read_keys(place, JudgeSettings, missing)
