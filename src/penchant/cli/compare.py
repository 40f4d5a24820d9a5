"""`penchant compare`: its arguments, and what is printed of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from penchant.cli.arguments import lists
from penchant.config.mistakes import nearest
from penchant.core.errors import ConfigError
from penchant.core.strict_json import to_json
from penchant.methods import METHODS

if TYPE_CHECKING:
    from penchant.commands.comparison import Comparison
    from penchant.core.resampling import Interval

# Marks a point that may be as good as the best.
SAME = "≈"
# Of the columns, those that a judge fills.
JUDGED = ("win_rate", "reward")
# Of the columns, those that are shown where they were measured.
COLUMNS = {
    "win_rate": "win rate",
    "reward": "reward",
    "implicit": "implicit accuracy",
    "raw": "raw accuracy",
    "kl": "KL, nats per answer",
    "length": "tokens per answer",
}


def run_compare(values: dict[str, Any]) -> None:
    """Compare, and print the table and what may be concluded."""
    methods = [one.strip().replace("-", "_") for one in values.pop("methods").split(",")]
    if unknown := [one for one in methods if one not in METHODS]:
        raise ConfigError(f"unknown method {unknown[0]!r}; {nearest(unknown[0], METHODS)}")
    as_json = values.pop("json", False)
    vary = {key: value.split(",") for key, value in values.items() if lists(methods, key, value)}
    keys = {key: value for key, value in values.items() if key not in vary}
    from penchant.commands.compare import compare
    from penchant.commands.comparison import figures

    result = compare(methods, vary, **keys)
    if as_json:
        print(to_json(figures(result), indent=2, default=str))
        return
    print_comparison(result)


def print_comparison(result: Comparison) -> None:
    """One row a point, the start first; a mean with half of its 95% interval, by prompt."""
    from penchant.commands.yardstick import YARDSTICKS

    measured = [one.measured for one in result.points if one.measured is not None]
    names = [name for name in COLUMNS if any(one.interval(name) for one in measured)]
    table = Table("", "point", *(COLUMNS[name] for name in names), "behind the best", "seconds")
    table.add_row("", "start", *(_cell(result.start.interval(name)) for name in names), "", "")
    table.add_section()
    for i, one in enumerate(result.points):
        mark = "*" if i == result.recommended else ""
        if one.measured is None:
            table.add_row(mark, one.name, f"failed: {one.error}")
            continue
        cells = [
            "not judged" if one.unjudged and name in JUDGED else _cell(one.measured.interval(name))
            for name in names
        ]
        same = f"{SAME} " if one.behind is not None and one.behind.by_chance else ""
        behind = "the best" if i == result.best else f"{same}{_cell(one.behind)}"
        table.add_row(mark, one.name, *cells, behind, f"{one.train_seconds:.0f}")
    Console().print(table)
    print(f"± half of the 95% interval, by prompt; {SAME} cannot be told apart from the best")
    for one in result.points:
        if one.unjudged:
            print(f"{one.name} could not be judged: {one.unjudged}")
            print("  its run is trained: the same command with --resume has it judged")
    print(f"yardstick: {result.yardstick}, the {YARDSTICKS[result.yardstick]}")
    if result.recommended is not None:
        chosen = result.points[result.recommended]
        print(f"recommended: {chosen.name} ({result.reason})")
        print(f"model: {chosen.output / 'model'}")
    else:
        print(f"nothing is recommended: {result.reason}")
    print(f"comparison: {result.output} (compare.json, compare.png)")


def _cell(found: Interval | None) -> str:
    if found is None:
        return "-"
    half = (found.high - found.low) / 2
    digits = 3 if abs(found.mean) < 10 else 1
    return f"{found.mean:.{digits}f} ± {half:.{digits}f}"
