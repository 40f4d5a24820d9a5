"""The parser of the command line, and how a command is added to it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from penchant.cli.descriptions import described
from penchant.cli.examples import usage
from penchant.core.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Its mistakes end like all others, in one line and status 1.

    Attributes:
        fill: adds its arguments once something is to be parsed; None: they are there.
    """

    fill: Callable[[Parser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._fill()
        return super().parse_known_args(args, namespace)

    def filled(self) -> Parser:
        """Itself, with every argument of every command under it."""
        self._fill()
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    parser.filled()
        return self

    def _fill(self) -> None:
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


# Arguments that several commands have.
SHARED: dict[str, dict[str, Any]] = {
    "json": {"action": "store_true", "help": "one JSON object, on standard output"},
    "strict": {"action": "store_true", "help": "any refused row is an error"},
    "max_length": {"type": int, "metavar": "N", "help": "tokens of prompt and completion"},
    "max_prompt_length": {"type": int, "metavar": "N", "help": "tokens of the prompt"},
    "max_completion_length": {"type": int, "metavar": "N", "help": "tokens of an answer"},
    "chat_template": {
        "metavar": "FILE",
        "help": "a Jinja file or chatml, in place of the model's",
    },
    "chat_template_kwargs": {
        "metavar": "NAME=VALUE,...",
        "help": "options of the template, as enable_thinking=false, or JSON",
    },
    "trust_remote_code": {"action": "store_true", "help": "run code that comes with the model"},
    "seed": {"type": int, "metavar": "N", "help": "the seed of every random choice"},
}


def add_shared(parser: Any, *names: str, **defaults: str) -> None:
    """Add arguments of `SHARED`.

    Args:
        parser: or a group of it.
        names: of those whose default goes without saying.
        defaults: what the others are where they are not given, in words.
    """
    for name in (*names, *defaults):
        shared = SHARED[name]
        default = f" (default: {defaults[name]})" if name in defaults else ""
        parser.add_argument(f"--{name}", **{**shared, "help": shared["help"] + default})


def add_command(commands: Any, name: str, **defaults: Any) -> Parser:
    """A command whose arguments are in the values only where they are given.

    Its help begins with its examples.

    Args:
        commands: that it is added to.
        name: its entry in the tables of commands; the last word is what is typed.
        defaults: of values that are always there.
    """
    parser: Parser = commands.add_parser(
        name.split()[-1],
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        **described(name),
    )
    parser.set_defaults(command=name, **defaults)
    parser.usage = usage(name)
    return parser
