"""What a chat template is given beside the messages: tools, calls of them, and its own options."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from penchant.data.records import Text, is_chat
from penchant.data.rows.row import Row, RowError, shown

# What rendering and tokenising set themselves.
SET_HERE = (
    "messages", "conversation", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
)  # fmt: skip
TYPES = {"string", "number", "integer", "boolean", "object", "array", "null"}
NAMED_SCHEMAS = ("properties", "$defs", "definitions", "patternProperties")
SCHEMAS = ("items", "additionalProperties", "not", "contains")
LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")


def with_columns(prompt: Text, row: Row) -> Text:
    """Put what stands beside a prompt for its chat template into its first message.

    Args:
        prompt: whose first message may have it already.
        row: with the columns `tools` and `chat_template_kwargs`, or without.

    Raises:
        RowError: a column is not what it should be, or stands beside a text prompt.
    """
    given = {name: one for name, read in READ.items() if (one := read(row.get(name), name))}
    if not is_chat(prompt):
        for name, value in given.items():
            raise RowError(
                f"{name} beside a text prompt",
                f"'{name}' is {shown(value)}, which only a chat template reads; give the prompt "
                "as messages ('penchant data convert FILE --text chat --output NEW'), or rename "
                "the column where the texts do without it",
            )
        return prompt
    for name, read in READ.items():
        within = read(prompt[0].get(name), f"prompt[0].{name}")
        if within and given.setdefault(name, within) != within:
            raise RowError(
                f"{name} given twice",
                f"'{name}' is {shown(given[name])}, and in the first message {shown(within)}; "
                "give one of them",
            )
    return ({**prompt[0], **given}, *prompt[1:]) if given else prompt  # type: ignore[typeddict-item]


def with_kwargs(records: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Records whose chats have these options of the template, except where a row has its own."""
    return [replace(one, prompt=_with_kwargs(one.prompt, kwargs)) for one in records]


def _with_kwargs(prompt: Text, kwargs: Mapping[str, Any]) -> Text:
    if not is_chat(prompt):
        return prompt
    own = prompt[0].get("chat_template_kwargs", {})
    return {**prompt[0], "chat_template_kwargs": {**kwargs, **own}}, *prompt[1:]


def require_free(names: Iterable[str]) -> None:
    """Refuse options that have another meaning than the template's.

    Raises:
        ValueError: such an option.
    """
    for name in names:
        if name in SET_HERE:
            raise ValueError(f"'{name}' is no option of a template, it is set here; drop it")


def _read_kwargs(value: object, field: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = _from_json(value, field)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise RowError("wrong type", f"'{field}' must be an object by name, got {shown(value)}")
    # A table fills what another row has with nulls.
    kwargs = {name: one for name, one in value.items() if one is not None}
    try:
        require_free(kwargs)
    except ValueError as error:
        raise RowError("option that is set here", f"'{field}': {error}") from error
    return kwargs


def _read_tools(value: object, field: str) -> list[dict[str, Any]]:
    """Functions on offer, as `{"type": "function", "function": {"name": ..., ...}}`."""
    if isinstance(value, str):
        value = _from_json(value, field)
    if not value:
        return []
    if not isinstance(value, list | tuple):
        raise RowError("wrong type", f"'{field}' must be a list of functions, got {shown(value)}")
    return [_read_tool(one, f"{field}[{number}]") for number, one in enumerate(value)]


def _read_tool(value: object, field: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = _from_json(value, field)
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(function, Mapping):
        raise _no_schema(field, f"it must be an object with a function, got {shown(value)}")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise _no_schema(
            field, f"its function has no name (it has: {', '.join(map(str, function))})"
        )
    for key in ("parameters", "return"):
        if function.get(key) is not None:
            _check_schema(function[key], field, f"{key} of {name}")
    return {**value} if "function" in value else {"type": "function", "function": {**function}}


def _check_schema(schema: object, field: str, place: str) -> None:
    """Refuse what no JSON Schema (draft 2020-12) can be: a part of another type than it must be."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise _no_schema(field, f"{place} must be an object, got {shown(schema)}")
    kind = schema.get("type")
    for one in kind if isinstance(kind, list | tuple) else [kind]:
        if one is not None and one not in TYPES:
            raise _no_schema(field, f"{place} has the type {shown(one)}, none of {_listed(TYPES)}")
    required = schema.get("required")
    if required is not None and not (
        isinstance(required, list | tuple) and all(isinstance(one, str) for one in required)
    ):
        raise _no_schema(field, f"{place}: 'required' must list names, got {shown(required)}")
    for key in NAMED_SCHEMAS:
        inner = schema.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            raise _no_schema(field, f"{place}: '{key}' must be an object, got {shown(inner)}")
        for name, one in (inner or {}).items():
            _check_schema(one, field, f"'{name}' in {place}")
    for key in SCHEMAS:
        if schema.get(key) is not None:
            _check_schema(schema[key], field, f"'{key}' in {place}")
    for key in LISTED_SCHEMAS:
        inner = schema.get(key)
        if inner is not None and not isinstance(inner, list | tuple):
            raise _no_schema(field, f"{place}: '{key}' must be a list, got {shown(inner)}")
        for one in inner or ():
            _check_schema(one, field, f"'{key}' in {place}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _no_schema(field: str, why: str) -> RowError:
    return RowError(
        "tool that is no JSON schema",
        f"'{field}': {why}; a tool is "
        '{"name": ..., "description": ..., "parameters": a JSON schema}, alone or as the '
        '"function" of {"type": "function", "function": ...}',
    )


def read_calls(value: object, field: str) -> list[dict[str, Any]]:
    """The functions that a message calls; their arguments stay as they are written.

    Raises:
        RowError: they are no list of calls.
    """
    if isinstance(value, str):
        value = _from_json(value, field)
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list | tuple):
        raise RowError("wrong type", f"'{field}' must be a list of calls, got {shown(value)}")
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(
                "call without a function",
                f"'{field}[{number}]' must name a function, as "
                f'{{"function": {{"name": ..., "arguments": ...}}}}, got {shown(call)}',
            )
        given = function.get("arguments")
        if not isinstance(given, str | Mapping | None):
            raise RowError(
                "wrong type",
                f"'{field}[{number}]' must have an object, or its JSON, as arguments, got "
                f"{shown(given)}",
            )
    return [{**call} for call in calls]


def _from_json(text: str, field: str) -> object:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError("malformed JSON", f"'{field}' is a text, but no JSON: {error}") from error


READ: dict[str, Callable[[object, str], Any]] = {
    "tools": _read_tools,
    "chat_template_kwargs": _read_kwargs,
}
