"""Results on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from penchant.core.commands import typeable
from penchant.core.screen import GIB, gibibytes
from penchant.data.records import counted
from penchant.methods import METHODS

if TYPE_CHECKING:
    from penchant.commands.check_result import CheckResult
    from penchant.commands.sweep import SweepResult
    from penchant.core.evaluation import Evaluation
    from penchant.guards.estimate.estimate import RunEstimate
    from penchant.rl.rewards.trial import Trial
    from penchant.training.result import TrainResult


def print_methods() -> None:
    """The methods' facts: two entries a method, when to use it and what it takes."""
    table = Table(show_header=False, show_lines=True)
    for method in METHODS.values():
        facts = method.facts
        rates = f"{facts.learning_rate:g} ({facts.learning_rate_lora:g})"
        takes = [f"{facts.data}; models in memory: {facts.models_in_memory}; {facts.stability}"]
        takes += [f"beta: {facts.beta}"] if facts.beta else []
        takes += [f"learning rate (with LoRA): {rates}"]
        table.add_row(method.name, Group(Text(facts.when, style="bold"), *map(Text, takes)))
    Console().print(table)


def print_path(lines: Sequence[tuple[str, str]]) -> None:
    """How a model would be scored, one line a heading."""
    table = Table(show_header=False)
    for heading, words in lines:
        table.add_row(heading, words)
    Console().print(table)


def print_evaluations(evaluations: dict[str, Evaluation]) -> None:
    """A table: one row a metric, one column a file (or a moment)."""
    table = Table("")
    for name in evaluations:
        table.add_column(name, justify="right")
    metrics = [one.metrics() for one in evaluations.values()]
    errors = {"kl/sequence": "kl/sequence_error"}
    for metric in dict.fromkeys(name for one in metrics for name in one):
        if metric not in errors.values():
            cells = [
                _with_error(one.get(metric), one.get(errors.get(metric, ""))) for one in metrics
            ]
            table.add_row(_described(metric, metrics), *cells)
    Console().print(table)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if error is None else f"{value:.3g} ± {error:.2g}"


def _described(metric: str, evaluations: Sequence[Mapping[str, float]]) -> str:
    """A metric's name; of a divergence also whose texts it is measured on, and its unit."""
    sampled = any("reward/mean" in one for one in evaluations)
    texts = "of its own answers" if sampled else "exact, on held-out texts"
    words = {"kl": f"{texts}, nats per token", "kl/sequence": "of its own answers, nats per answer"}
    return f"{metric} ({words[metric]})" if metric in words else metric


def print_check(result: CheckResult) -> None:
    """Findings, errors first; one record by token; what the run would take."""
    console = Console()
    colours = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    for finding in result.findings:
        severity = Text(finding.severity, style=colours[finding.severity])
        what = severity.append(f" {finding.id}: {finding.what}", style="not bold default")
        # A command of several lines is pasted: nothing follows it in its line.
        joint = "\n  " if "\n" in finding.remedy else " "
        remedy = Text(typeable(f"  {finding.remedy}{joint}({finding.docs})"), style="dim")
        for line in (what, remedy):
            console.print(line, soft_wrap=not console.is_terminal)
    if result.preview is not None:
        console.print()
        console.print(result.preview.render())
    for trial in result.trials:
        console.print()
        console.print(_trial(trial))
    if result.path:
        console.print()
        print_path(result.path)
    if result.estimate is not None:
        console.print()
        console.print(_estimate(result.estimate))
    counts = ", ".join(counted(n, name) for name, n in result.counts().items())
    print(f"\n{result.method}: {counts}")


def _trial(trial: Trial) -> Group:
    """A prompt, an answer and what the rewards pay for it."""
    answer = "answer that was sampled" if trial.sampled else "answer made from the data"
    title = "the reward, tried on one answer" if trial.scores else "how the model answers now"
    table = Table(show_header=False, title=title, title_justify="left")
    table.add_row("prompt", Text(trial.prompt))
    table.add_row(answer, Text(trial.answer))
    for name, score in trial.scores.items():
        table.add_row(f"score of {name}", f"{score:g}")
    return Group(table)


def _estimate(estimate: RunEstimate) -> Group:
    """Memory by part, the verdict, and what would take less."""
    table = Table("memory at the peak", "GiB")
    table.columns[1].justify = "right"
    for name, size in estimate.parts.items():
        if size:
            table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("together", f"{estimate.peak_bytes / GIB:.2f}")
    fits = "fits" if estimate.fits else "does not fit"
    lines = [Text(f"{fits}: {gibibytes(estimate.needed_bytes)} to come of "
                  f"{gibibytes(estimate.limit_bytes)} that can be had")]  # fmt: skip
    if estimate.seconds is not None:
        lines.append(
            Text(
                f"{counted(estimate.num_steps, 'step')}, about {estimate.seconds:.0f} s of "
                f"training and {estimate.evaluation_seconds:.0f} s of evaluation"
            )
        )
    if not estimate.fits:
        lines += [Text(f"would take less: {one.describe()}") for one in estimate.proposals]
    return Group(table, *lines)


def print_sweep(result: SweepResult) -> None:
    """A sweep for a person: one row a point, the recommended one marked."""
    from penchant.commands.points import PENDING
    from penchant.commands.sweep import comparable_margins

    keys = list(result.points[0].values)
    comparable = comparable_margins(result)
    units = ("margin", "loss") if comparable else ()
    table = Table(
        "", *keys, _quality(result), *units, "KL on held-out texts, nats per token", "train seconds"
    )
    for i, point in enumerate(result.points):
        cells = [str(point.values[key]) for key in keys]
        after = point.after
        if after is None:
            table.add_row("", *cells, f"failed: {point.error}")
            continue
        kl = "-" if after.kl is None else f"{after.kl:.4f}"
        _, value, error = after.quality
        numbers = [f"{value:.3f} ± {error:.3f}"]
        if comparable:
            numbers += ["-" if v is None else f"{v:.4g}" for v in (after.margin, after.loss)]
        mark = "*" if i == result.recommended else ""
        table.add_row(mark, *cells, *numbers, kl, f"{point.train_seconds:.0f}")
    Console().print(table)
    if result.recommended is not None:
        chosen = result.points[result.recommended]
        settings = ", ".join(f"{key} {value}" for key, value in chosen.values.items())
        print(f"recommended: {settings} ({result.reason})")
        print(f"model: {chosen.output / 'model'}")
    elif PENDING in result.reason:
        print(result.reason)
        return
    print(f"sweep: {result.output} (sweep.json, sweep.png)")


def _quality(result: SweepResult) -> str:
    return next((p.after.quality[0] for p in result.points if p.after is not None), "accuracy")


def print_result(result: TrainResult) -> None:
    """The end of a run, for a person."""
    if result.before and result.after:
        print_evaluations({"before": result.before, "after": result.after})
        distance = result.after.kl_sequence
        if distance is not None:
            from penchant.reporting.verdict import against_band

            print(f"own answers: {against_band(distance, result.after.kl_sequence_error)}")
    print(
        f"{counted(result.steps, 'step')} in {result.train_seconds:.0f} s, "
        f"{result.examples_per_second:.2f} examples/s, {result.tokens_per_second:,.0f} tokens/s, "
        f"peak memory {gibibytes(result.memory_peak_bytes)}"
    )
    print(f"model: {result.model}")
    print(f"run:   {result.output}")
    if (page := result.output / "report.html").exists():
        print(f"page:  {page}")
    from penchant.reporting.settings import how_to_load

    for library, line in how_to_load(result.model).items():
        print(f"{library + ':':14}{line}")
    if (merged := result.output / "merged").is_dir():
        print(f"merged: {merged}")
        for library, line in how_to_load(merged).items():
            print(f"{library + ':':14}{line}")
