"""The command line's arguments: every command with every key, grouped, with defaults."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import penchant
from penchant.cli.data_arguments import add_build, add_convert, add_reading, add_split
from penchant.cli.data_arguments import add_commands as add_audit
from penchant.cli.descriptions import described
from penchant.cli.evaluate import add_evaluate
from penchant.cli.examples import usage
from penchant.cli.model_arguments import (
    add_chat,
    add_completion,
    add_export,
    add_merge,
    add_push,
    add_recipes,
)
from penchant.cli.parser import Parser, add_command, add_shared
from penchant.config.keys import EVERYDAY, POINT_DEFAULTS, RunConfig
from penchant.config.sections import SECTIONS
from penchant.methods import METHODS

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


# Keys that a method may need of its own in a comparison, as `--orpo.learning_rate`.
OWN_KEYS = ("learning_rate", "num_train_epochs", "max_steps")


def build_parser() -> Parser:
    """Every command with every key, grouped, with defaults."""
    parser = Parser(prog="penchant", description="Preference tuning of language models.")
    parser.add_argument("--version", action="version", version=f"penchant {penchant.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    parser.set_defaults(command="journeys")
    _add_runs(commands)
    add_recipes(commands)
    add_command(commands, "evaluate").fill = add_evaluate
    advise = add_command(commands, "advise")
    _add_advise(advise)
    table = add_command(commands, "methods")
    table.add_argument(
        "--model", help="say which layout this model would be scored in, without loading weights"
    )
    add_shared(table, "trust_remote_code")
    _add_data(
        commands.add_parser("data", help="build, inspect, clean, convert and split preference data")
    )
    _add_label(commands)
    _add_explain(commands)
    _add_report(commands)
    for add in (add_chat, add_merge, add_export, add_push):
        add(commands)
    add_completion(commands)
    demo = add_command(commands, "demo", output=Path("runs/demo"))
    demo.add_argument("--output", type=Path, help="the run directory (default: runs/demo)")
    return parser


def _add_runs(commands: Any) -> None:
    """The commands that take every key of a run."""
    train = commands.add_parser("train", **described("train"))
    _add_methods(train, "train")
    check = commands.add_parser("check", **described("check"))
    _add_methods(check, "check")
    sweep = commands.add_parser("sweep", **described("sweep"))
    _add_methods(sweep, "sweep")
    compare = add_command(commands, "compare")
    compare.fill = _add_compare
    config = commands.add_parser("config", **described("config"))
    _add_methods(config, "config")


def _add_methods(parser: Parser, command: str) -> None:
    """A subcommand a method, with every key of a run: some 150, added where it is the one given."""
    methods = parser.add_subparsers(required=True, metavar="METHOD", dest="method")
    for name, method in METHODS.items():
        one = methods.add_parser(
            name, help=method.title, description=f"{method.title}: {method.facts.when}.",
            argument_default=argparse.SUPPRESS, allow_abbrev=False,
            usage=usage(command, name, method.options.model_fields),
            aliases=[name.replace("_", "-")] if "_" in name else [],
        )  # fmt: skip
        one.set_defaults(command=command)
        one.fill = partial(_add_run, name=name, command=command)


def _add_run(parser: argparse.ArgumentParser, *, name: str, command: str) -> None:
    """The keys of a run, those that everyone sets first."""
    options = METHODS[name].options
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of these keys")
    if command == "check":
        add_shared(parser, "json")
        parser.add_argument(
            "--no_probe",
            action="store_true",
            help="load no weights: memory by the configuration, no time",
        )
        parser.add_argument(
            "--num_processes",
            type=int,
            metavar="N",
            help="look at the run as one of N processes would meet it",
        )
        parser.add_argument(
            "--node_size",
            type=int,
            metavar="N",
            help="how many of them are on a node: sharding hybrid divides weights within it",
        )
    if command == "sweep":
        parser.add_argument(
            "--worker",
            metavar="I/N",
            help="train the I-th of every N points only; N commands with the same output train "
            "all of them, and the last that ends compares them",
        )
    fields = {key: field for part in (*SECTIONS, options)
              for key, field in part.model_fields.items()}  # fmt: skip
    usual = POINT_DEFAULTS if command == "sweep" else {}
    everyday = {key: fields[key] for key in EVERYDAY if key in fields}
    _add_keys(parser, "usually set", everyday, usual)
    for title, part in [(f"{name} options", options), *_titled_sections()]:
        rest = {key: field for key, field in part.model_fields.items() if key not in EVERYDAY}
        _add_keys(parser, title, rest, usual)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    """What decides, and the keys of runs: those of one method too, as `--simpo.beta`."""
    add = parser.add_argument
    add("--methods", required=True, metavar="A,B", help="such as dpo,simpo,orpo")
    add("--yardstick", metavar="NAME", help="what decides: win_rate or reward (of own answers, by "
        "monitor_reward), implicit or raw (accuracy on held-out pairs); default: win_rate with a "
        "monitor_reward, otherwise implicit")  # fmt: skip
    add("--num_answers", type=int, metavar="N",
        help="held-out prompts that each point answers (default: 32)")  # fmt: skip
    add_shared(parser, "json")
    add("--config", type=Path, metavar="FILE", help="a YAML file of these keys")
    options = {key: field for method in METHODS.values()
               for key, field in method.options.model_fields.items()}  # fmt: skip
    known = {key for part in SECTIONS for key in part.model_fields}
    options = {key: field for key, field in options.items() if key not in known}
    _add_keys(parser, "options of methods; --METHOD.OPTION is of one alone", options)
    for title, part in _titled_sections():
        _add_keys(parser, title, part.model_fields, {**POINT_DEFAULTS, "output": "compare"})
    for name, method in METHODS.items():
        for key in (*method.options.model_fields, *OWN_KEYS):
            add(f"--{name}.{key}", help=argparse.SUPPRESS)


def lists(methods: Sequence[str], key: str, value: object) -> bool:
    """Whether a comma separates values: not in a text such as lora_target_modules.

    Args:
        methods: whose options the key may be of.
        key: of a run, or `method.key`.
        value: as it was typed.
    """
    fields: dict[str, Any] = dict(RunConfig.model_fields)
    for method in methods:
        fields |= METHODS[method].options.model_fields
    name = key.rpartition(".")[2]
    if name not in fields or not isinstance(value, str) or "," not in value:
        return False
    return metavar(fields[name]) not in ("TEXT", "PATH")


def _titled_sections() -> list[tuple[str, type[BaseModel]]]:
    return [(section.__doc__ or "", section) for section in SECTIONS]


def _add_keys(
    parser: argparse.ArgumentParser,
    title: str,
    fields: Mapping[str, FieldInfo],
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """A group of keys, with the command's `usual` values where it has its own."""
    group = parser.add_argument_group(title)
    for name, field in fields.items():
        shown = _show(usual.get(name, field.default))
        default = "" if field.is_required() else f" (default: {shown})"
        help_text = f"{field.description}{default}".replace("%", "%%")
        # Values stay text here: the configuration checks them and says what is wrong.
        if field.annotation is bool:
            shape: dict[str, Any] = {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif field.annotation in (tuple[str, ...], tuple[str, ...] | None):
            shape = {"metavar": "TEXT", "action": "append"}
        else:
            shape = {"metavar": metavar(field)}
        group.add_argument(f"--{name}", help=help_text, **shape)


def metavar(field: FieldInfo) -> str:
    """What a key's value is called in help."""
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _show(default: Any) -> str:
    return {"None": "none", "True": "true", "False": "false"}.get(str(default), str(default))


def _add_advise(parser: argparse.ArgumentParser) -> None:
    usual = parser.add_argument_group("usually set")
    add = usual.add_argument
    add("--data", action="append", required=True,
        help="preference data, in any form that training takes; repeated, all of them")  # fmt: skip
    add("--model", required=True, help="a run, a model folder, a hub id, a .gguf, an adapter")
    add(
        "--memory",
        metavar="SIZE",
        help="memory to plan for, such as 24GiB (default: what is free here)",
    )
    add("--goal", metavar="GOAL", help="balanced (default), memory, noise, length, simple, reward")
    add("--reward", metavar="REWARD", help="what judges answers, where the data are prompts")
    rest = parser.add_argument_group("more")
    add_reading(rest)
    add_shared(rest, max_length="covers 99%%", max_prompt_length="covers 99%%")
    add_shared(rest, "chat_template", "trust_remote_code", "json")


def _add_label(commands: Any) -> None:
    label = add_command(commands, "label")
    label.add_argument("file", nargs="+", metavar="FILE",
        help="pairs, in any form that training takes, or without a label")  # fmt: skip
    add = label.add_argument_group("usually set").add_argument
    add("--annotators", metavar="NAMES", help="who may answer, as ann,bob (default: anyone)")
    add("--overlap", type=int, metavar="K", help="annotators for each pair (default: 1)")
    add("--question", metavar="TEXT", help="asked of each pair (default: Which answer is better?)")
    add("--guidelines", type=Path, metavar="FILE",
        help="text or Markdown that annotators can read beside the pairs")  # fmt: skip
    add("--no_strength", action="store_true",
        help="do not ask by how much the chosen answer is better")  # fmt: skip
    add("--export", type=Path, metavar="OUT", help="write the answers to a new .jsonl, and end")
    add("--judge", metavar="URL|FILE",
        help="have a model compare each pair in both orders, and end: the address of an "
        "OpenAI-compatible API, or a YAML file with url, model and rubric")  # fmt: skip
    rest = label.add_argument_group("more")
    rest.add_argument("--port", type=int, metavar="N",
        help="the port of the address (default: any free one)")  # fmt: skip
    add_reading(rest)
    add_shared(rest, "strict", seed="0, of the left and right order")


def _add_explain(commands: Any) -> None:
    explain = add_command(commands, "explain")
    explain.add_argument("id", metavar="ID", help="as findings are printed, such as length-bias")


def _add_report(commands: Any) -> None:
    report = add_command(commands, "report")
    report.add_argument(
        "runs", metavar="RUN", nargs="+", help="the folder that train wrote to (output)"
    )
    report.add_argument("--output", type=Path, metavar="FILE",
        help="the page (default: RUN/report.html; of several: report.html)")  # fmt: skip
    report.add_argument("--card", action="store_true",
        help="write the saved model's README.md again too")  # fmt: skip
    watch = add_command(commands, "watch")
    watch.add_argument("run", metavar="RUN", help="what train writes to (output)")
    watch.add_argument("--once", action="store_true", help="show it once, and end")


def _add_data(parser: argparse.ArgumentParser) -> None:
    tools = parser.add_subparsers(required=True, metavar="TOOL")
    add_build(tools)
    add_convert(tools)
    add_split(tools)
    add_audit(tools)
