"""The report on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from penchant.audit.page import places
from penchant.audit.report import Report

NUM_PLACES = 3
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def print_report(report: Report) -> None:
    """Counts, findings with their remedies, the cues, and tokens where a model was given."""
    console = Console()
    console.print(Text(_plain(f"{report.source}, layout: {report.layout}")))
    counts = ", ".join(f"{number:,} {name}" for name, number in report.counts.items())
    console.print(Text(counts), highlight=False)
    if report.findings:
        console.print(_findings(report))
    else:
        console.print("nothing was found")
    if report.cues:
        console.print(_cues(report))
    if report.tokens:
        console.print(_tokens(report))


def _plain(text: str) -> str:
    """Without what a terminal would obey: names and details come from the data."""
    return "".join(one if one.isprintable() or one == "\n" else "\ufffd" for one in text)


def _findings(report: Report) -> Table:
    table = Table("", "Finding", title="Findings", title_justify="left", show_lines=True)
    # An id is typed: it is never cut, however narrow the terminal is.
    table.add_column("Remedy", overflow="fold", min_width=len("--drop chosen-equals-rejected"))
    for one in report.findings:
        title = Text(_plain(one.title))
        for example in one.evidence.get("examples", []):
            title.append(f"\n{_plain(example)}", "dim")
        if one.rows.size:
            title.append(f"\nin {_plain(places(report, one, NUM_PLACES))}")
        remedy = Text(one.remedy)
        if one.droppable and f"--drop {one.id}" not in one.remedy:
            remedy.append(f"\n--drop {one.id}", "bold")
        elif one.sampled and one.rows.size:
            remedy.append("\n(of a sample; --sample N looks at more)", "dim")
        table.add_row(Text(one.severity, COLOURS[one.severity]), title, remedy)
    return table


def _cues(report: Report) -> Table:
    title = f"Cues alone, on {report.cues[0].num_held_out:,} held-out pairs"
    table = Table("Cue", "Accuracy", "Decides", "Where it decides", title=title,
                  title_justify="left")  # fmt: skip
    for cue in report.cues:
        table.add_row(cue.name, f"{cue.accuracy:.1%}", f"{cue.differs:.1%}",
                      f"{cue.when_differs:.1%}" if cue.differs else "-")  # fmt: skip
    return table


def _tokens(report: Report) -> Table:
    tokens = report.tokens
    assert tokens is not None
    table = Table("Tokens", "Median", "90%", "99%", "Longest", title_justify="left",
                  title=f"Lengths of {tokens.num_sampled:,} records for the model")  # fmt: skip
    rows = {"prompt": tokens.prompt, "completion": tokens.completion, "together": tokens.total}
    for name, one in rows.items():
        table.add_row(name, *(f"{n:,}" for n in (one.p50, one.p90, one.p99, one.longest)))
    return table
