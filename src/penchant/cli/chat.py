"""`penchant chat`: prompts from a keyboard, a pipe, a file or the command line, and the answers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text as Words

from penchant.cli.descriptions import CHAT_HELP
from penchant.core.errors import ConfigError, ModelError
from penchant.core.strict_json import to_json

if TYPE_CHECKING:
    from penchant.commands.chat import Chat
    from penchant.data.records import Text


def run_chat(values: dict[str, Any]) -> None:
    """Talk until there is nothing more to answer."""
    texts, file = values.pop("prompt", None), values.pop("prompts", None)
    as_json = values.pop("json", False)
    if texts and file:
        raise ConfigError("--prompt and --prompts are two sources of prompts; give one")
    prompts = _read(file) if file else texts
    from penchant.commands.chat import open_chat

    chat = open_chat(values.pop("model"), prompts=prompts or (), **values)
    show = _show_json if as_json else _Screen().show
    if prompts is not None:
        for prompt in prompts:
            chat.forget()
            show(chat, prompt)
        return
    _converse(chat, show)


def _read(file: str) -> list[Text]:
    from penchant.data.prompts import read_prompts

    data = read_prompts(file)
    print(data.summary(), file=sys.stderr)
    return [prompt.prompt for prompt in data.records]


def _converse(chat: Chat, show: Any) -> None:
    """Answer line by line; from a pipe, a mistake ends with an error, as it does elsewhere."""
    typed = sys.stdin.isatty()
    for line in _lines(typed):
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/new":
                chat.forget()
            elif command == "/system":
                chat.instruct(rest.strip())
            elif command.startswith("/") and typed:
                print(CHAT_HELP)
            else:
                show(chat, line)
        except (ConfigError, ModelError) as error:
            if not typed:
                raise
            print(f"penchant: {error}")


def _lines(typed: bool) -> Iterator[str]:
    """Lines that hold something, until the input ends."""
    if not typed:
        yield from (line for one in sys.stdin if (line := one.strip()))
        return
    with contextlib.suppress(ImportError):  # the keys of editing and history; not on Windows
        import readline  # noqa: F401
    print(CHAT_HELP)
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line


def _show_json(chat: Chat, prompt: Text) -> None:
    answers = chat.ask(prompt, lambda name, piece: None)
    record = {"prompt": prompt, **{name: asdict(answer) for name, answer in answers.items()}}
    print(to_json(record), flush=True)


class _Screen:
    """Answers as they grow: side by side on a terminal, one after the other elsewhere."""

    def __init__(self) -> None:
        self.console = Console()

    def show(self, chat: Chat, prompt: Text) -> None:
        """Ask, and show."""
        if not sys.stdin.isatty() or not self.console.is_terminal:
            print(f"prompt: {_shown(prompt)}")
        if self.console.is_terminal and len(chat.names) > 1:
            self._beside(chat, prompt)
        else:
            self._in_turn(chat, prompt)

    def _beside(self, chat: Chat, prompt: Text) -> None:
        texts = dict.fromkeys(chat.names, "")
        with Live(_columns(texts), console=self.console, refresh_per_second=8) as live:

            def grow(name: str, piece: str) -> None:
                texts[name] += piece
                live.update(_columns(texts))

            answers = chat.ask(prompt, grow)
            notes = {
                name: _note(answer.num_tokens, answer.ended) for name, answer in answers.items()
            }
            live.update(_columns(texts, notes))

    def _in_turn(self, chat: Chat, prompt: Text) -> None:
        speaking = ""

        def grow(name: str, piece: str) -> None:
            nonlocal speaking
            if name != speaking:
                print(f"{chr(10) if speaking else ''}{name}: ", end="")
                speaking = name
            print(piece, end="", flush=True)

        chat.ask(prompt, grow)
        print("\n")


def _columns(texts: dict[str, str], notes: dict[str, str] | None = None) -> Table:
    table = Table(show_footer=notes is not None, expand=True)
    for name in texts:
        table.add_column(name, (notes or {}).get(name, ""), ratio=1, footer_style="dim")
    table.add_row(*(Words(text.strip()) for text in texts.values()))
    return table


def _note(num_tokens: int, ended: bool) -> str:
    return f"{num_tokens} tokens" + ("" if ended else ", cut off")


def _shown(prompt: Text) -> str:
    if isinstance(prompt, str):
        return prompt
    said: Iterable[str] = (f"{one['role']}: {one['content']}" for one in prompt)
    return "\n".join(said)
