"""Chats as text: a tokenizer's chat template, with tools, calls and the template's own options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from penchant.core.errors import ModelError
from penchant.data.records import Message, Messages
from penchant.data.rows.row import TEMPLATE_COLUMNS
from penchant.data.token_report import TemplateRefusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What goes wrong inside a template: its own refusals, and what Python says of its expressions.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generation_prompt: bool
) -> str:
    """A chat as the tokenizer's template writes it.

    The arguments of calls are given as objects, as transformers takes them; a template that wants
    their JSON as text, which then fails or writes Python's form of an object, gets that.

    Args:
        tokenizer: with a chat template.
        messages: at least one; the first has the tools and the template's options.
        generation_prompt: end with what opens an answer.

    Raises:
        ModelError: the tokenizer has no template.
        TemplateRefusal: the template refuses a role, an order, tools or an option.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the data is chat messages, but the model has no chat template; give one with "
            "chat_template (chatml, or a Jinja file), or use an instruction-tuned model"
        )

    def written(chat: Iterable[Mapping[str, Any]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                [{k: v for k, v in one.items() if k not in TEMPLATE_COLUMNS} for one in chat],
                tools=messages[0].get("tools"),  # type: ignore[arg-type]
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **messages[0].get("chat_template_kwargs", {}),
            )
        )

    try:
        if not any(message.get("tool_calls") for message in messages):
            return written(messages)
        return _with_arguments(messages, written)
    except TEMPLATE_ERRORS as error:
        if not _is_of_template(error):
            raise
        raise TemplateRefusal(str(error) or type(error).__name__) from error


def _is_of_template(error: Exception) -> bool:
    """Whether a template refuses, or computes what fails: the same error elsewhere is our fault.

    Jinja leaves its mark in the frame that stands for the line of the template.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    by_library = "transformers" in str(frames[-1].f_globals.get("__name__"))
    inside = any("__jinja_exception__" in frame.f_globals for frame in frames)
    return isinstance(error, TemplateError) or inside or by_library


def _with_arguments(messages: Messages, written: Any) -> str:
    """The chat with the arguments of its calls in the form that the template takes."""
    objects = [_with_calls(message, _as_object) for message in messages]
    shapes = {repr(one) for one in _arguments(objects) if isinstance(one, Mapping) and one}
    try:
        text: str = written(objects)
    except TEMPLATE_ERRORS as refusal:
        if not shapes or not _is_of_template(refusal):
            raise
        try:
            return str(written([_with_calls(message, _as_text) for message in messages]))
        except TEMPLATE_ERRORS:
            raise refusal from None  # what the template says of the usual form
    if any(shape in text for shape in shapes):
        other = str(written([_with_calls(message, _as_text) for message in messages]))
        return text if any(shape in other for shape in shapes) else other
    return text


def _with_calls(message: Message, form: Any) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return {**message}
    return {**message, "tool_calls": [_with_form(call, form) for call in calls]}


def _with_form(call: Mapping[str, Any], form: Any) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _with_form(call["function"], form)}
    return {**call, "arguments": form(call.get("arguments"))}


def _as_object(arguments: object) -> object:
    """The object that JSON text stands for; text that is none stays."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except ValueError:
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments


def _as_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _arguments(messages: Iterable[Mapping[str, Any]]) -> Iterator[object]:
    for message in messages:
        for call in message.get("tool_calls") or ():
            yield call.get("function", call).get("arguments")


def unread_kwargs(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[str]:
    """The options beside a chat that its template never asks for."""
    names = messages[0].get("chat_template_kwargs", {})
    if not names:
        return []
    tools: Any = messages[0].get("tools")
    read = _variables(tokenizer.get_chat_template(tools=tools))
    return [name for name in names if name not in read]


@cache
def _variables(template: str) -> frozenset[str]:
    """The names that a template reads without setting them itself."""
    from jinja2 import Environment, meta
    from jinja2.ext import loopcontrols

    environment = Environment(extensions=[loopcontrols])
    return frozenset(
        meta.find_undeclared_variables(environment.parse(GENERATION.sub("", template)))
    )


def marked_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, encode: Any
) -> tuple[list[int], list[int]] | None:
    """The tokens of a chat, and 1 for each that its template marks as generated.

    Args:
        tokenizer, messages: as for `render`.
        text: what `render` made of them.
        encode: how training encodes, which drops a second BOS token.

    Returns:
        None where the template has no `{% generation %}` marks, or the tokenizer is a slow one,
        which cannot place them.
    """
    tools: Any = messages[0].get("tools")
    template = tokenizer.get_chat_template(tools=tools)
    if not GENERATION.search(template) or not tokenizer.is_fast:
        return None
    for form in (_as_object, _as_text):
        chat = [
            {k: v for k, v in _with_calls(one, form).items() if k not in TEMPLATE_COLUMNS}
            for one in messages
        ]
        given = {"tools": tools, **messages[0].get("chat_template_kwargs", {})}
        if str(tokenizer.apply_chat_template(chat, tokenize=False, **given)) == text:
            break
    out: Any = tokenizer.apply_chat_template(
        chat,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **given,
    )
    ids, flags = list(out["input_ids"]), list(out["assistant_masks"])
    begun = len(ids) - len(encode(text, special=False))
    return ids[begun:], flags[begun:]
