"""What is said on the command line by name: columns of the data, options of a chat template."""

from __future__ import annotations

import json
from typing import Any

WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_columns(text: str) -> dict[str, str]:
    """Read `chosen=better,rejected=worse`.

    Raises:
        ValueError: it is not of this form.
    """
    columns: dict[str, str] = {}
    for word in filter(str.strip, text.split(",")):
        name, _, own = (part.strip() for part in word.partition("="))
        if not (name and own):
            raise ValueError(f"must be NAME=VALUE,..., got {text!r}")
        columns[name] = own
    return columns


def parse_kwargs(value: Any) -> Any:
    """Read `enable_thinking=false,budget=512` or a JSON object; what is no text stays.

    Raises:
        ValueError: it is of neither form.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    return {name: _typed(word) for name, word in parse_columns(value).items()}


def _typed(word: str) -> Any:
    """What a word of the command line means: true, a number, or text."""
    if word.lower() in WORDS:  # Python's True too: as text, it would count as true whatever it says
        return WORDS[word.lower()]
    try:
        return json.loads(word)
    except ValueError:
        return word
