"""A YAML file with every key of a run: what it means, and its value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from penchant.config.keys import EVERYDAY, load_config
from penchant.config.sections import SECTIONS
from penchant.methods import METHODS

WIDTH = 96


def yaml_template(method: str, values: Mapping[str, Any] | None = None) -> str:
    """Every key of a method with its meaning as a comment; a file that can be run.

    Args:
        method: a name in `METHODS`.
        values: keys that differ from their defaults. What has no default and is not among them
            gets a placeholder.

    Raises:
        ConfigError: a wrong key or value.
    """
    placeholders = {"model": "owner/name", "data": "pairs.jsonl"}
    if method in METHODS:
        spec = METHODS[method]
        placeholders["data"] = f"{spec.data}.jsonl"
        known = {"reward": "rewards.py:score", "teacher_model": "owner/teacher"}
        required = (n for n, field in spec.options.model_fields.items() if field.is_required())
        placeholders |= {name: known.get(name, name) for name in required}
    config = load_config(method, {**placeholders, **(values or {})})
    flat, options = config.flat(), type(config.options)
    parts = {f"{method} options": options, **{part.__doc__ or "": part for part in SECTIONS}}
    fields = {name: field for part in parts.values() for name, field in part.model_fields.items()}
    groups = {"Usually set": [name for name in EVERYDAY if name in fields]}
    for title, part in parts.items():
        groups[title] = [name for name in part.model_fields if name not in EVERYDAY]
    lines = [f"# {config.spec.title}: {config.spec.facts.when}.", f"method: {method}"]
    for title, names in groups.items():
        if names:
            lines += ["", f"## {title}"]
        for name in names:
            field = fields[name]
            meaning = f"{field.description}{' Required.' if field.is_required() else ''}"
            lines += ["", *_commented(meaning), _line(name, flat[name])]
    return "\n".join(lines) + "\n"


def _commented(text: str) -> Iterable[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _line(name: str, value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump({name: value}, default_flow_style=True, width=10**6)
    return text.strip().removeprefix("{").removesuffix("}")
