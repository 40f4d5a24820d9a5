"""The parser of the command line, and how a command is added to it."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from penchant.core.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Its mistakes end like all others, in one line and status 1."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_command(
    commands: Any, name: str, *, help: str, description: str, command: str = "", **defaults: Any
) -> Parser:
    """A command whose arguments are in the values only where they are given.

    Args:
        commands: that it is added to.
        name: by which it is called.
        help, description: in the list of commands, and in its own help.
        command: its entry in `COMMANDS`; default: its name.
        defaults: of values that are always there.
    """
    parser: Parser = commands.add_parser(
        name,
        help=help,
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command or name, **defaults)
    return parser
