"""`penchant evaluate`: its arguments, and what is printed of what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from penchant.cli.data_arguments import add_reading
from penchant.cli.parser import add_shared
from penchant.core.atomic import write_atomically
from penchant.core.errors import ConfigError
from penchant.core.outputs import require_writable, unwritable
from penchant.core.strict_json import to_json

if TYPE_CHECKING:
    from penchant.commands.win_rate import WinRate
    from penchant.core.length_control import LengthControlled
    from penchant.core.ranking import Ranking, Row
    from penchant.core.resampling import Interval

# What a judge that is itself measured takes.
OF_A_JUDGE = {"split", "columns", "strict"}
# What is measured, by the option that names it.
MEASURES = ("data", "prompts", "tasks")
# Options that go with some of them only.
GO_WITH = {
    "reference": ("data",), "beta": ("data",), "method": ("data",), "attention": ("data",),
    "reward": ("prompts",), "against": ("prompts",), "max_new_tokens": ("prompts",),
    "temperature": ("prompts",), "top_p": ("prompts",), "seed": ("prompts",),
    "judge": ("data", "prompts"), "split": ("data", "prompts"), "columns": ("data", "prompts"),
    "strict": ("data", "prompts"), "num_fewshot": ("tasks",), "limit": ("tasks",),
    "include_path": ("tasks",), "chat_template": ("data", "prompts"), "answers": ("prompts",),
    "chat_template_kwargs": ("data", "prompts"), "max_prompt_length": ("data", "prompts"),
    "precision": ("data", "prompts"),
}  # fmt: skip


def add_evaluate(parser: Any) -> None:
    """The arguments, by what is measured."""
    usual = parser.add_argument_group("usually set")
    add = usual.add_argument
    add("--model", help="a run, a model folder, a hub id, a .gguf, an adapter")
    add(
        "--data", action="append",
        help="held-out records; of a reward model or a judge also a benchmark. Given several "
        "times, each is measured apart, then all together",
    )  # fmt: skip
    add("--prompts", metavar="FILE",
        help="prompts whose answers are judged, against those of another model")  # fmt: skip
    add("--tasks", metavar="A,B",
        help="tasks of lm-evaluation-harness, such as gsm8k,ifeval")  # fmt: skip
    add("--batch_size", type=int,
        help="records, or answers drawn side by side, per forward pass (default: 8)")  # fmt: skip
    add_shared(usual, max_length="the run's, or 1024")
    add_shared(usual, "json")
    _add_pairs(parser.add_argument_group("with --data"))
    _add_answers(parser.add_argument_group("with --prompts"))
    _add_tasks(parser.add_argument_group("with --tasks"))
    rest = parser.add_argument_group("more")
    add_reading(rest)
    add_shared(rest, max_prompt_length="half of max_length")
    rest.add_argument("--precision", help="auto, fp32, bf16 or fp16: of the arithmetic")
    rest.add_argument("--dtype", help="auto, fp32, bf16 or fp16: of the weights")
    add_shared(rest, "chat_template", "chat_template_kwargs", "strict", "trust_remote_code")


def _add_pairs(group: Any) -> None:
    add = group.add_argument
    add("--reference", help="the model to compare with (default: what the run started from)")
    add("--beta", type=float, help="scale of the implicit rewards (default: the run's, or 0.1)")
    add("--method", help="whose loss and rewards are reported (default: the run's, or dpo)")
    add("--attention", help="auto, sdpa, flex, varlen or plain")


def _add_answers(group: Any) -> None:
    add = group.add_argument
    add("--reward", action="append", metavar="REWARD",
        help="what scores answers, as training names it; several are added up")  # fmt: skip
    add("--judge", metavar="URL|FILE",
        help="a model that compares the two answers in both orders: the address of an "
        "OpenAI-compatible API, or a YAML file; with --data it is itself measured")  # fmt: skip
    add("--answers", type=Path, metavar="FILE",
        help="write both answers to each prompt, then the verdict too, as JSON lines")  # fmt: skip
    add("--against", metavar="MODEL", help="the other model (default: what the run started from)")
    add("--max_new_tokens", type=int, metavar="N", help="of an answer (default: 256)")
    add("--temperature", type=float, metavar="X", help="of the draws (default: 1); 0: no draws")
    add("--top_p", type=float, metavar="X", help="draw from the likeliest tokens only (default: 1)")
    add_shared(group, seed="0, the draws of penchant compare")


def _add_tasks(group: Any) -> None:
    add = group.add_argument
    add("--num_fewshot", type=int, metavar="N", help="examples in a prompt (default: the task's)")
    add("--limit", type=float, metavar="N", help="questions of each task; below 1: a share")
    add("--include_path", metavar="FOLDER", help="with YAML files of tasks of your own")


def run_evaluate(values: dict[str, Any]) -> None:
    """Measure what is named, and print it.

    Raises:
        UserError: not one thing to measure, options of another, and what measuring raises.
    """
    as_json = values.pop("json", False)
    measures = [name for name in MEASURES if name in values]
    if len(measures) != 1:
        given = f"got --{' and --'.join(measures)}" if measures else "got none of them"
        raise ConfigError(f"evaluate measures one of --data, --prompts and --tasks; {given}")
    (measure,) = measures
    for name in values:
        if measure not in GO_WITH.get(name, MEASURES):
            places = " or ".join(f"--{one}" for one in GO_WITH[name])
            raise ConfigError(f"--{name} goes with {places}, not with --{measure}; drop it")
    if "model" not in values and not (measure == "data" and "judge" in values):
        raise ConfigError("evaluate needs a model: --model; see penchant evaluate --help")
    measured = {"data": _of_data, "prompts": _of_prompts, "tasks": _of_tasks}[measure](values)
    if as_json:
        print(to_json(measured.figures, indent=2))
    else:
        measured.show()
    measured.save()


class _Measured(NamedTuple):
    """What was found: for JSON, for a person, and what is written after either was printed."""

    figures: Any
    show: Callable[[], None]
    save: Callable[[], None] = lambda: None


def _of_data(values: dict[str, Any]) -> _Measured:
    """Held-out records: of a policy, of a reward model, of a judge."""
    sources = {file: file for file in values.pop("data")}
    if "judge" in values:
        from penchant.commands.judge_benchmark import judge_each

        if "model" in values:
            raise ConfigError("with --data either --model or --judge is measured; give one")
        judge = values.pop("judge")
        if extra := values.keys() - OF_A_JUDGE:
            named = " --".join(sorted(extra))
            raise ConfigError(f"a judge that is measured takes no --{named}; its file says how")
        judged = judge_each(sources, judge, **values)

        def show_judged() -> None:
            for name, one in judged.items():
                _show_ranking(name, one.ranking, one.note)

        return _Measured({name: asdict(one) for name, one in judged.items()}, show_judged)
    from penchant.cli.show import print_evaluations
    from penchant.commands.benchmark import Benchmark
    from penchant.commands.evaluate import measure_each

    measured = measure_each(sources, **values)
    evaluations = {
        name: one.evaluation if isinstance(one, Benchmark) else one
        for name, one in measured.items()
    }
    ranked = {name: one.ranking for name, one in measured.items() if isinstance(one, Benchmark)}

    def show() -> None:
        for name, ranking in ranked.items():
            _show_ranking(name, ranking)
        print_evaluations(evaluations)

    figures = {name: asdict(one) for name, one in evaluations.items()}
    for name, ranking in ranked.items():
        figures[name]["ranking"] = asdict(ranking)
    return _Measured(figures, show)


def _of_prompts(values: dict[str, Any]) -> _Measured:
    """A policy's own answers."""
    from penchant.commands.win_rate import win_rate

    file: Path | None = values.pop("answers", None)
    if file is not None:
        require_writable(file, "--answers")
    write = None if file is None else partial(_write_answers, file)
    # Before they are judged: what was drawn is kept where a judge fails.
    found = win_rate(**values, drawn=write)
    save: Callable[[], None] = (lambda: None) if write is None else partial(write, found.answers)
    return _Measured(found.figures(), lambda: _show_win_rate(found), save)


def _write_answers(file: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    try:
        write_atomically(file, "".join(to_json(one) + "\n" for one in answers))
    except OSError as error:
        raise unwritable(file, error, "--answers") from error


def _of_tasks(values: dict[str, Any]) -> _Measured:
    """Tasks of lm-evaluation-harness."""
    from penchant.commands.harness import run_tasks

    tasks = [task.strip() for task in values.pop("tasks").split(",")]
    found = run_tasks(tasks=tasks, **values)
    return _Measured(found, lambda: _show_tasks(found))


def _show_ranking(name: str, ranking: Ranking, note: str = "") -> None:
    table = Table(name, "questions", "right", "at equal lengths", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for some in (ranking.subsets, ranking.sections, [ranking.total]):
        for row in some:
            table.add_row(*_cells(row))
        table.add_section()
    Console().print(table)
    print(f"share ranked right, with 95% intervals by prompt; total: {ranking.rule}")
    if note:
        print(note)


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.name, str(row.num), _interval(row.accuracy), _equal(row.equal_length)


def _interval(found: Interval | None) -> str:
    return "-" if found is None else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _equal(found: LengthControlled | None) -> str:
    return "-" if found is None else _interval(found.share)


def _show_win_rate(found: WinRate) -> None:
    table = Table("", found.model, found.against)
    if found.reward is not None:
        table.add_row("reward", _interval(found.reward), _interval(found.other_reward))
    table.add_row("tokens per answer", f"{found.num_tokens:.1f}", f"{found.other_num_tokens:.1f}")
    table.add_row("ended by themselves", f"{found.ended:.0%}", f"{found.other_ended:.0%}")
    console = Console()
    console.print(table)
    rates = Table(show_header=False)
    rates.add_row("win rate", _interval(found.win_rate))
    rates.add_row("at equal lengths", _equal(found.equal_length))
    rates.add_row("wins, ties, losses", f"{found.wins}, {found.ties}, {found.losses}")
    lead = found.lead
    decided = f"{lead.num_decided} of {lead.num_prompts}, p = {lead.p:.2g}"
    rates.add_row("decided prompts", decided)
    if found.gain is not None:
        rates.add_row("gain in reward", _interval(found.gain))
    console.print(rates)
    print(f"win rate: {found.meaning}, ties half; 95% intervals by prompt")
    if found.contradicted:
        print(f"ties because the verdict followed the order: {found.contradicted}")
    if found.half_preferred:
        print(f"ties because an answer was preferred in one order only: {found.half_preferred}")
    if found.unjudged:
        print(f"prompts without a verdict, left out: {found.unjudged}")
    if found.usage:
        print(f"{found.judged_by}: {found.usage}")
    print(found.verdict)


def _show_tasks(found: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table("task", "metric", "value", "standard error")
    for task, metrics in found.items():
        for metric, value in metrics.items():
            error = "-" if value["error"] is None else f"{value['error']:.4f}"
            table.add_row(task, metric, f"{value['value']:.4f}", error)
    Console().print(table)
