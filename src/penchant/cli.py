"""The command line: parse, call, print. Torch is imported only by what needs it."""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin

from penchant.config import SECTIONS, RunConfig, unknown_key
from penchant.errors import ConfigError, UserError
from penchant.methods import METHODS

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from penchant.evaluation import Evaluation
    from penchant.result import TrainResult
    from penchant.sweep import SweepResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a mistake named on the last line."""
    given = [_underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        parsed, unknown = build_parser().parse_known_args(given)
        values = vars(parsed)
        command = values.pop("command")
        _refuse_unknown(unknown, values)
        command(values)
    except UserError as error:
        print(f"penchant: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; --resume goes on from the last checkpoint" if given[:1] == ["train"] else ""
        print(f"penchant: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Its mistakes end like all others, in one line and status 1."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _underscored(word: str) -> str:
    """`--max-length` is `--max_length`, the key's name."""
    flag, equals, value = word.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if flag[:2] == "--" else word


def _refuse_unknown(words: Sequence[str], values: dict[str, Any]) -> None:
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(f"unexpected {word!r}; every setting is given as --key value")
        key = word[2:].partition("=")[0]
        if "method" not in values:
            raise ConfigError(f"unknown option {word}; see --help")
        raise ConfigError(unknown_key(key, values["method"].replace("-", "_")))


def build_parser() -> argparse.ArgumentParser:
    """Every command with every key, grouped, with defaults."""
    parser = _Parser(
        prog="penchant", description="Preference tuning of language models on one machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train", help="tune a model", description="Tune a model with one of the methods."
    )
    _add_methods(
        train, _train, "penchant train {} --model M --data D --output RUN [--any_key value ...]"
    )
    sweep = commands.add_parser(
        "sweep",
        help="one method at several settings",
        description="Train a method at every combination of comma-separated values, and compare.",
    )
    _add_methods(
        sweep,
        _sweep,
        "penchant sweep {} --model M --data D --train_fraction F --output S --beta 0.05,0.1,0.3",
    )
    evaluate = commands.add_parser(
        "evaluate",
        help="compare a model with what people preferred",
        description="Held-out accuracy, margin, log-probs and KL of a model or a run.",
        argument_default=argparse.SUPPRESS,
    )
    evaluate.set_defaults(command=_evaluate)
    _add_evaluate(evaluate)
    table = commands.add_parser("methods", help="the methods, and when to use which")
    table.set_defaults(command=_methods)
    _add_data(commands.add_parser("data", help="convert preference data"))
    demo = commands.add_parser("demo", help="tune a small real model on the sample set, and look")
    demo.set_defaults(command=_demo)
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="the run directory")
    return parser


def _add_methods(parser: argparse.ArgumentParser, command: Any, usage: str) -> None:
    """A subcommand a method, with every key of a run."""
    methods = parser.add_subparsers(required=True, metavar="METHOD", dest="method")
    for name, method in METHODS.items():
        one = methods.add_parser(
            name, help=method.title, description=f"{method.title}: {method.facts.when}.",
            argument_default=argparse.SUPPRESS, allow_abbrev=False, usage=usage.format(name),
            aliases=[name.replace("_", "-")] if "_" in name else [],
        )  # fmt: skip
        one.set_defaults(command=command)
        one.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of these keys")
        _add_keys(one, f"{name} options", method.options)
        for section in SECTIONS:
            _add_keys(one, section.__doc__ or "", section)


def _add_keys(parser: argparse.ArgumentParser, title: str, model: type[BaseModel]) -> None:
    group = parser.add_argument_group(title)
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else f" (default: {_show(field.default)})"
        help_text = f"{field.description}{default}".replace("%", "%%")
        # Values stay text here: the configuration checks them and says what is wrong.
        if field.annotation is bool:
            shape: dict[str, Any] = {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            shape = {"metavar": _metavar(field)}
        group.add_argument(f"--{name}", help=help_text, **shape)


def _metavar(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _show(default: Any) -> str:
    return {"None": "none", "True": "true", "False": "false"}.get(str(default), str(default))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="a run, a model folder, a hub id, a .gguf, an adapter")
    add("--data", action="append", required=True, help="held-out pairs; repeat for several files")
    add("--reference", help="the model to compare with (default: what the run started from)")
    add("--beta", type=float, help="scale of the implicit rewards (default: the run's, or 0.1)")
    add("--max_length", type=int, help="tokens of prompt and completion")
    add("--max_prompt_length", type=int, help="tokens of the prompt")
    add("--chat_template", help="a Jinja file in place of the model's")
    add("--attention", help="auto, sdpa, flex or plain")
    add("--precision", help="auto, fp32, bf16 or fp16: of the arithmetic")
    add("--dtype", help="auto, fp32, bf16 or fp16: of the weights")
    add("--method", help="whose loss and rewards are reported (default: the run's, or dpo)")
    add("--batch_size", type=int, help="records a forward pass (default: 8)")
    add("--strict", action="store_true", help="any refused row is an error")
    add("--trust_remote_code", action="store_true",
        help="run code that comes with the model")  # fmt: skip
    add("--json", action="store_true", help="one JSON object by file, on standard output")


def _add_data(parser: argparse.ArgumentParser) -> None:
    tools = parser.add_subparsers(required=True, metavar="TOOL")
    convert = tools.add_parser(
        "convert",
        help="turn pairs into labels, or labels into pairs",
        description="Write pairs as labels (two each), or labels as pairs (within a prompt).",
    )
    convert.set_defaults(command=_convert)
    add = convert.add_argument
    add("source", metavar="FILE", help="what to read, in any form that training takes")
    add("--to", required=True, choices=("labels", "pairs"), help="what to write")
    add("--output", required=True, type=Path, metavar="OUT", help="a new .jsonl file")
    add("--split", default="train", help="of a source that has several (default: train)")
    add("--strict", action="store_true", help="any refused row is an error")


def _train(values: dict[str, Any]) -> None:
    from penchant.training import train

    print_result(train(_method(values), **values))


def _method(values: dict[str, Any]) -> str:
    """The method's name, which may have been typed with hyphens."""
    return str(values.pop("method")).replace("-", "_")


def _sweep(values: dict[str, Any]) -> None:
    from penchant.sweep import sweep

    method = _method(values)
    vary = {key: value.split(",") for key, value in values.items() if _is_list(method, key, value)}
    keys = {key: value for key, value in values.items() if key not in vary}
    print_sweep(sweep(method, vary, **keys))


def _is_list(method: str, key: str, value: object) -> bool:
    """Whether a comma separates values: not in a text such as lora_target_modules."""
    fields = {**RunConfig.model_fields, **METHODS[method].options.model_fields}
    if key not in fields or not isinstance(value, str) or "," not in value:
        return False
    return _metavar(fields[key]) not in ("TEXT", "PATH")


def _evaluate(values: dict[str, Any]) -> None:
    from penchant.evaluating import evaluate

    as_json, files = values.pop("json", False), values.pop("data")
    found = {file: evaluate(data=file, **values) for file in files}
    if as_json:
        print(json.dumps({file: asdict(one) for file, one in found.items()}, indent=2))
        return
    print_evaluations(found)


def _convert(values: dict[str, Any]) -> None:
    from penchant.data.convert import convert

    print(convert(**values).summary())


def _demo(values: dict[str, Any]) -> None:
    from penchant.demo import demo

    demo(values["output"])


def _methods(_: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True)
    for column in ("Method", "Data", "Models in memory", "Stability", "When to use", "lr (LoRA)"):
        table.add_column(column)
    for method in METHODS.values():
        facts = method.facts
        rates = f"{facts.learning_rate:g} ({facts.learning_rate_lora:g})"
        table.add_row(
            method.name, facts.data, facts.models_in_memory, facts.stability, facts.when, rates
        )
    Console().print(table)


def print_evaluations(found: dict[str, Evaluation]) -> None:
    """A table: one row a metric, one column a file (or a moment)."""
    from rich.console import Console
    from rich.table import Table

    table = Table("")
    for name in found:
        table.add_column(name, justify="right")
    metrics = [one.metrics() for one in found.values()]
    for metric in dict.fromkeys(name for one in metrics for name in one):
        cells = [one.get(metric) for one in metrics]
        table.add_row(metric, *("-" if cell is None else f"{cell:.4g}" for cell in cells))
    Console().print(table)


def print_sweep(result: SweepResult) -> None:
    """A sweep for a person: one row a point, the recommended one marked."""
    from rich.console import Console
    from rich.table import Table

    keys = list(result.points[0].values)
    table = Table("", *keys, "accuracy", "margin", "loss", "KL, nats a token", "train seconds")
    for i, point in enumerate(result.points):
        cells = [str(point.values[key]) for key in keys]
        found = point.after
        if found is None:
            table.add_row("", *cells, f"failed: {point.error}")
            continue
        kl = "-" if found.kl is None else f"{found.kl:.4f}"
        numbers = (f"{v:.4g}" for v in (found.accuracy, found.margin, found.loss))
        mark = "*" if i == result.recommended else ""
        table.add_row(mark, *cells, *numbers, kl, f"{point.train_seconds:.0f}")
    Console().print(table)
    if result.recommended is not None:
        chosen = result.points[result.recommended]
        settings = ", ".join(f"{key} {value}" for key, value in chosen.values.items())
        print(f"recommended: {settings} ({result.reason})")
        print(f"model: {chosen.output / 'model'}")
    print(f"sweep: {result.output} (sweep.json, sweep.png)")


def print_result(result: TrainResult) -> None:
    """The end of a run, for a person."""
    if result.before and result.after:
        print_evaluations({"before": result.before, "after": result.after})
    print(
        f"{result.steps} steps in {result.train_seconds:.0f} s, "
        f"{result.examples_per_second:.2f} pairs/s, {result.tokens_per_second:,.0f} tokens/s, "
        f"peak memory {result.memory_peak_bytes / 1e9:.2f} GB"
    )
    print(f"model: {result.model}")
    print(f"run:   {result.output}")
