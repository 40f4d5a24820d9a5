"""Types of values that keys have: texts with commas, columns, options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer


def joined(value: Any) -> Any:
    """Text with commas, of a list of names or of a mapping such as `{"collapse": "rollback"}`."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(str, value))
    return value


CommaSeparated = Annotated[str, BeforeValidator(joined)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _parsed_columns(value: Any) -> Any:
    from penchant.data.named_words import parse_columns

    return parse_columns(value) if isinstance(value, str) else value


def _parsed_kwargs(value: Any) -> Any:
    from penchant.data.named_words import parse_kwargs

    return parse_kwargs(value)


def _free(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs:
        from penchant.data.rows.template import require_free  # few runs have any

        require_free(kwargs)
    return kwargs


def _unlisted(value: tuple[str, ...]) -> str | list[str]:
    return value[0] if len(value) == 1 else list(value)


Listed = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(_listed), PlainSerializer(_unlisted)
]
Columns = Annotated[dict[str, str], BeforeValidator(_parsed_columns)]


Kwargs = Annotated[dict[str, Any], BeforeValidator(_parsed_kwargs)]
TemplateKwargs = Annotated[Kwargs, AfterValidator(_free)]
