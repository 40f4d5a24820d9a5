"""Chat templates read both ways: messages to strings, and strings back to messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from penchant.core.errors import ModelError
from penchant.data.records import DataError, Message, Messages
from penchant.data.rows.row import RowError, shown

if TYPE_CHECKING:
    from jinja2 import Template

BUILTIN = {
    # With tools, reasoning and calls, as Qwen and Hermes write them.
    "chatml": (
        "{% if tools %}{{ '<|im_start|>system\\n' }}"
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
        "{{ '# Tools\\n\\nEach function on offer, as JSON:\\n<tools>' }}"
        "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
        "{{ '\\n</tools>\\n\\nTo call one, answer with its name and arguments as JSON within "
        "<tool_call></tool_call>.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{% if not (tools and loop.first and m['role'] == 'system') %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% set thoughts = m['reasoning_content'] or m['reasoning'] or m['thinking'] %}"
        "{% if thoughts %}{{ '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}{% endif %}"
        "{% if m['role'] == 'tool' and m['name'] %}{{ m['name'] + ': ' }}{% endif %}"
        "{{ m['content'] }}"
        "{% for call in m['tool_calls'] or [] %}{% set called = call['function'] or call %}"
        "{% if m['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
        "{{ '<tool_call>\\n' }}"
        "{{ {'name': called['name'], 'arguments': called['arguments']} | tojson }}"
        "{{ '\\n</tool_call>' }}{% endfor %}"
        "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "human_assistant": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '\\n\\nHuman: ' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + m['content'] }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
    ),
}
# Chats from which a template's marks are learnt: each pair of roles that may follow each other.
EXAMPLES = (
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant"),
    ("developer", "user", "assistant"),
    ("user", "assistant", "tool", "assistant", "user"),
    ("user", "assistant", "tool", "tool", "assistant"),
)


def read_template(given: str) -> str:
    """A built-in template by its name, or the text of a Jinja file.

    Raises:
        ModelError: the file cannot be read.
    """
    if given in BUILTIN:
        return BUILTIN[given]
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"chat_template could not be read: {error}; set chat_template to a Jinja file, or to "
            f"one of {', '.join(BUILTIN)}"
        ) from error


class ChatTemplate:
    """A Jinja chat template.

    Args:
        source: the template's text.
        name: how messages call it.
        tokens: what it may name beside the messages, such as `eos_token`.
    """

    def __init__(self, source: str, name: str, tokens: dict[str, str] | None = None) -> None:
        self.source, self.name, self.tokens = source, name, tokens or {}

    @classmethod
    def load(cls, given: str | Path) -> ChatTemplate:
        """A built-in template by its name, a Jinja file, or the folder of a tokenizer.

        Raises:
            DataError: there is none.
        """
        path = Path(given).expanduser()
        if str(given) in BUILTIN:
            return cls(BUILTIN[str(given)], str(given))
        if path.is_file():
            return cls(path.read_text(encoding="utf-8"), path.name)
        config = path / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        file = path / "chat_template.jinja"
        source = (
            file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
        )
        if not isinstance(source, str):
            raise DataError(
                f"no chat template at {given}; give template a Jinja file, the folder of a "
                f"tokenizer, or one of {', '.join(BUILTIN)}"
            )
        return cls(source, path.name, _tokens(settings))

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The messages as text.

        Raises:
            RowError: the template refuses them.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=generation_prompt, **self.tokens
            )
        except TemplateError as error:
            raise RowError("refused by the template", f"{self.name}: {error}") from error

    def to_strings(self, prompt: Messages, completion: Messages) -> tuple[str, str]:
        """A chat's prompt and completion as text.

        Raises:
            RowError: the template refuses them, or renders the prompt differently once there is
                an answer.
        """
        before = self.render(prompt, generation_prompt=True)
        whole = self.render((*prompt, *completion))
        if not whole.startswith(before):
            raise RowError(
                "prompt changed by the answer",
                f"{self.name} renders the prompt differently once an answer follows",
            )
        return before, whole[len(before) :]

    def to_messages(self, prompt: str, completion: str) -> tuple[Messages, Messages]:
        """The chat that renders as this text.

        Raises:
            RowError: no chat does.
        """
        whole = prompt + completion
        messages = self._parse(whole)
        for cut in range(len(messages) - 1, 0, -1):
            head, tail = messages[:cut], messages[cut:]
            if tail[0]["role"] != "assistant":
                continue
            if (
                self.render(head, generation_prompt=True) == prompt
                and self.render(messages) == whole
            ):
                return head, tail
        raise RowError("not in the template", f"no chat renders as {shown(whole)} in {self.name}")

    def _parse(self, text: str) -> Messages:
        """Cut a text at the marks between messages."""
        starts, between, ends = self._marks
        opened = [(mark, role) for role, mark in starts.items() if text.startswith(mark)]
        if not opened:
            return ()
        mark, role = max(opened, key=lambda one: len(one[0]))
        messages: list[Message] = []
        at = len(mark)
        while True:
            following = [
                (text.find(m, at), -len(m), m, after) for after, m in between[role].items()
            ]
            first_mark = min((one for one in following if one[0] >= 0), default=None)
            if first_mark is None:
                break
            messages.append(Message(role=role, content=text[at : first_mark[0]]))
            at, role = first_mark[0] + len(first_mark[2]), first_mark[3]
        rest = text[at:]
        end = ends.get(role, "")
        messages.append(Message(role=role, content=rest[: len(rest) - len(end)] if end else rest))
        return tuple(messages)

    @cached_property
    def _marks(self) -> tuple[dict[str, str], dict[str, dict[str, str]], dict[str, str]]:
        """What stands before a first message, between two, and after a last one, by role."""
        starts: dict[str, str] = {}
        between: dict[str, dict[str, str]] = {}
        ends: dict[str, str] = {}
        for roles in EXAMPLES:
            words = [f"message {number} of many" for number in range(len(roles))]
            chat = [Message(role=r, content=w) for r, w in zip(roles, words, strict=True)]
            try:
                rest = self.render(chat)
            except RowError:
                continue  # a template that knows no such role, or order
            for number, word in enumerate(words):
                mark, separator, rest = rest.partition(word)
                if not separator:
                    break
                if number:
                    between.setdefault(roles[number - 1], {}).setdefault(roles[number], mark)
                else:
                    starts.setdefault(roles[0], mark)
            else:
                ends.setdefault(roles[-1], rest)
        for role in (*ends, *starts):
            between.setdefault(role, {})
        return starts, between, ends

    @cached_property
    def _template(self) -> Template:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"the chat template {self.name} is not Jinja: {error.message} at line "
                f"{error.lineno}"
            ) from error


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tokens(settings: dict[str, object]) -> dict[str, str]:
    """The end token of a tokenizer's settings; the first one the tokenizer adds to text itself."""
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return {"eos_token": text} if isinstance(text, str) else {}
