"""The arguments of commands about files of keys, and about models that runs have made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from penchant.cli.examples import usage
from penchant.cli.parser import Parser, add_command, add_shared
from penchant.core.commands import install
from penchant.core.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")


def add_recipes(commands: Any) -> None:
    """`penchant recipes`."""
    recipes = add_command(
        commands,
        "recipes",
        help="files of keys to start from: one a method, one a journey",
        description="List the recipes, or copy one of them to edit and to run.",
    )
    recipes.usage = usage("recipes")
    recipes.add_argument("name", nargs="?", metavar="NAME", help="which to copy; without: list all")
    recipes.add_argument("--output", type=Path, metavar="FILE", help="default: NAME.yaml")


def run_recipes(values: dict[str, Any]) -> None:
    """List the recipes, or copy one."""
    from penchant.commands.recipes import copy_recipe, recipes

    name = values.get("name")
    if name is not None:
        file = copy_recipe(name, values.get("output"))
        print(f"{file}: set model and data in it, then: penchant train {file}")
        return
    if "output" in values:
        raise ConfigError("--output is where one recipe is copied; name the recipe too")
    known = recipes()
    width = max(len(one.name) for one in known)
    for one in known:
        print(f"{one.name:{width}}  {one.about}")
    print("\npenchant recipes NAME copies one into this folder")


def add_completion(commands: Any) -> None:
    """`penchant completion`."""
    completion = add_command(
        commands,
        "completion",
        help="completion of commands and keys in your shell",
        description="Print a script for the shell, which completes commands, methods and keys.",
    )
    completion.usage = usage("completion")
    completion.add_argument("shell", choices=SHELLS, help="whose script is printed")


def print_completion(parser: Parser, values: dict[str, Any]) -> None:
    """Print the script of a shell.

    Raises:
        ConfigError: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ConfigError(
            f"completion is written by shtab, which is not installed; {install('completion')}"
        ) from None
    sys.stdout.write(shtab.complete(parser, shell=values["shell"]))


def add_merge(commands: Any) -> None:
    """`penchant merge`."""
    merge = add_command(
        commands,
        "merge",
        help="a model of a run's adapter and its base, for tools that take no adapter",
        description="Add a run's adapter to its base and save the whole model.",
    )
    merge.usage = usage("merge")
    merge.add_argument("run", metavar="RUN", help="a run that trained an adapter, or the adapter")
    merge.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/merged")
    add_shared(merge, "trust_remote_code")


def run_merge(values: dict[str, Any]) -> None:
    """Merge, and say where the model is and what loads it."""
    from penchant.commands.merge import merge
    from penchant.reporting.settings import how_to_load

    folder = merge(values.pop("run"), **values)
    print(f"model: {folder}")
    for library, line in how_to_load(folder).items():
        print(f"{library + ':':14}{line}")
