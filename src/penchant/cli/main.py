"""The command line: parse, call, print. Torch is imported only by what needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from penchant.cli.arguments import build_parser, lists
from penchant.cli.examples import journeys
from penchant.cli.model_arguments import (
    print_completion,
    run_export,
    run_merge,
    run_push,
    run_recipes,
)
from penchant.cli.words import as_parsed
from penchant.config.files import read_yaml
from penchant.config.keys import known_keys, load_config
from penchant.config.mistakes import unknown_key
from penchant.core.commands import typeable
from penchant.core.errors import ConfigError, RunInterrupted, UserError
from penchant.core.findings import spoken
from penchant.core.strict_json import to_json
from penchant.core.team import launched

if TYPE_CHECKING:
    from penchant.commands.check_result import CheckResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a mistake named on the last line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed, unknown = build_parser().parse_known_args(as_parsed(given))
        values = vars(parsed)
        command = values.pop("command")
        _refuse_unknown(unknown, values)
        _require_alone(command)
        return COMMANDS[command](values) or 0
    except UserError as error:
        print(typeable(f"penchant: {error}"), file=sys.stderr)
        sys.last_value = error  # as Python does with what nothing catches
        return 1
    except RunInterrupted as interruption:
        print(typeable(f"penchant: {interruption}"), file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        hint = "; --resume goes on from the last checkpoint" if given[:1] == ["train"] else ""
        print(f"penchant: interrupted{hint}", file=sys.stderr)
        return 130


def _refuse_unknown(words: Sequence[str], values: dict[str, Any]) -> None:
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(f"unexpected {word!r}; every setting is given as --key value")
        key = word[2:].partition("=")[0]
        if "method" not in values:
            raise ConfigError(f"unknown option {word}; see --help")
        method = values["method"].replace("-", "_")
        raise ConfigError(unknown_key(key, method, known_keys(method)))


def _require_alone(command: str) -> None:
    """Refuse several processes where each would do all the work, and write the same files."""
    if command not in SHARED and (size := launched().size) > 1:
        raise ConfigError(
            f"penchant {command} works in one process, and {size} were launched; start it without "
            "a launcher, or unset WORLD_SIZE where a single process is meant"
        )


def _train(values: dict[str, Any]) -> None:
    method = _method(values)
    _require_valid(method, values)
    from penchant.cli.show import print_result
    from penchant.commands.train import train

    result = train(method, **values)
    if launched().leads:
        print_result(result)


def _check(values: dict[str, Any]) -> int:
    as_json, probe = values.pop("json", False), not values.pop("no_probe", False)
    processes = {n: values.pop(n) for n in ("num_processes", "node_size") if n in values}
    method = _method(values)
    try:
        _require_valid(method, values)
    except ConfigError as error:
        if not as_json:
            raise
        if launched().size == 1:  # of several one alone may be mistaken, which `check` tells
            from penchant.commands.check_result import CheckResult, stopped

            silence = str(values.get("silence") or "")
            return _show_check(CheckResult(method, spoken([stopped(error)], silence)), as_json)
    from penchant.commands.check import check

    return _show_check(check(method, probe=probe, **processes, **values), as_json)


def _show_check(result: CheckResult, as_json: bool) -> int:
    if launched().leads and as_json:
        print(to_json(result.as_dict(), indent=2))
    elif launched().leads:
        from penchant.cli.show import print_check

        print_check(result)
    # The leader tells it for all: a launcher that sees another process fail would end it before.
    return 1 if result.errors and launched().leads else 0


def _require_valid(method: str, values: dict[str, Any]) -> None:
    """Refuse a wrong key or value in a moment: what follows imports torch, which takes seconds.

    Raises:
        ConfigError: a wrong key or value.
    """
    load_config(
        method, {k: v for k, v in values.items() if k != "config"}, file=values.get("config")
    )


def _method(values: dict[str, Any]) -> str:
    """The method's name, which may have been typed with hyphens."""
    return str(values.pop("method")).replace("-", "_")


def _sweep(values: dict[str, Any]) -> None:
    method, worker = _method(values), values.pop("worker", None)
    vary = {key: value.split(",") for key, value in values.items() if lists([method], key, value)}
    keys = {key: value for key, value in values.items() if key not in vary}
    _require_valid(method, {**keys, **{key: each[0] for key, each in vary.items()}})
    from penchant.cli.show import print_sweep
    from penchant.commands.sweep import sweep

    result = sweep(method, vary, worker=worker, **keys)
    if launched().leads:
        print_sweep(result)


def _compare(values: dict[str, Any]) -> None:
    from penchant.cli.compare import run_compare

    run_compare(values)


def _evaluate(values: dict[str, Any]) -> None:
    from penchant.cli.evaluate import run_evaluate

    run_evaluate(values)


def _advise(values: dict[str, Any]) -> None:
    from penchant.advising import advise
    from penchant.cli.show_advice import print_advice

    as_json = values.pop("json", False)
    advice = advise(**values)
    if as_json:
        print(to_json(advice.as_dict(), indent=2))
        return
    print_advice(advice)


def _build(values: dict[str, Any]) -> None:
    from penchant.cli.data_arguments import run_build

    run_build(values)


def _split(values: dict[str, Any]) -> None:
    from penchant.data.split_file import split_file

    print(split_file(**values).summary())


def _convert(values: dict[str, Any]) -> None:
    from penchant.data.converting.convert import convert

    print(convert(**values).summary())


def _inspect(values: dict[str, Any]) -> None:
    from penchant.cli.data_arguments import run_inspect

    run_inspect(values)


def _clean(values: dict[str, Any]) -> None:
    from penchant.cli.data_arguments import run_clean

    run_clean(values)


def _label(values: dict[str, Any]) -> None:
    if "export" in values:
        from penchant.label.export import export_answers

        if extra := values.keys() & {*OF_PAGE, "overlap"}:
            raise ConfigError(
                f"--export only writes answers; leave out --{' --'.join(sorted(extra))}"
            )
        print(export_answers(values.pop("file"), values.pop("export"), **values).summary())
        return
    if "judge" in values:
        from penchant.label.judge import judge_pairs

        if extra := values.keys() & OF_PAGE:
            raise ConfigError(f"--judge opens no page; leave out --{' --'.join(sorted(extra))}")
        print(judge_pairs(values.pop("file"), values.pop("judge"), **values).summary())
        return
    from penchant.label.serving import label

    if "annotators" in values:
        values["annotators"] = values["annotators"].split(",")
    label(**values)


def _report(values: dict[str, Any]) -> None:
    from penchant.reporting import report, write_card

    runs, card = values.pop("runs"), values.pop("card", False)
    print(report(*runs, **values))
    if card:
        for run in runs:
            print(write_card(run))


def _watch(values: dict[str, Any]) -> None:
    from penchant.reporting.watch import watch

    watch(values["run"], once=values.get("once", False))


def _demo(values: dict[str, Any]) -> None:
    from penchant.commands.demo import demo

    demo(values["output"])


def _explain(values: dict[str, Any]) -> None:
    from penchant.core.explain import explain

    print(explain(values["id"]))


def _config(values: dict[str, Any]) -> None:
    from penchant.config.template import yaml_template

    method, file = _method(values), values.pop("config", None)
    print(yaml_template(method, {**(read_yaml(file) if file else {}), **values}), end="")


def _completion(values: dict[str, Any]) -> None:
    print_completion(build_parser().filled(), values)


def _journeys(_: dict[str, Any]) -> None:
    print(typeable(journeys()))


def _chat(values: dict[str, Any]) -> None:
    from penchant.cli.chat import run_chat

    run_chat(values)


def _methods(values: dict[str, Any]) -> None:
    from penchant.cli.show import print_methods, print_path

    if not values.get("model"):
        print_methods()
        return
    from penchant.models.locate import resolve
    from penchant.models.path import describe_path

    trusted = bool(values.get("trust_remote_code"))
    print_path(describe_path(resolve(values["model"]), trust_remote_code=trusted))


# What several processes do together.
SHARED = {"train", "sweep", "check"}
# Of the page that is served: an export opens none, nor does a judge.
OF_PAGE = {"annotators", "port", "seed", "question", "guidelines", "no_strength"}
# Each returns its exit status; nothing is 0.
COMMANDS: dict[str, Callable[[dict[str, Any]], int | None]] = {
    "train": _train,
    "check": _check,
    "sweep": _sweep,
    "compare": _compare,
    "evaluate": _evaluate,
    "advise": _advise,
    "methods": _methods,
    "explain": _explain,
    "data build": _build,
    "data convert": _convert,
    "data split": _split,
    "data inspect": _inspect,
    "data clean": _clean,
    "label": _label,
    "report": _report,
    "watch": _watch,
    "demo": _demo,
    "config": _config,
    "recipes": run_recipes,
    "completion": _completion,
    "merge": run_merge,
    "chat": _chat,
    "export": run_export,
    "push": run_push,
    "journeys": _journeys,
}
