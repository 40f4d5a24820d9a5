"""Advice on a terminal."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.table import Table

from penchant.advising.advice import NUM_SHOWN, Advice
from penchant.advising.findings import Findings
from penchant.advising.ranking import length_text, noise_text
from penchant.core.screen import gibibytes
from penchant.data.lengths import Percentiles
from penchant.data.records import counted


def print_advice(advice: Advice) -> None:
    """What was found, the methods, the settings, and the command as a line to copy."""
    console = Console()
    console.print(_findings(advice))
    console.print(_methods(advice))
    console.print(_others(advice))
    console.print(_settings(advice))
    for text in advice.warnings:
        console.print(f"warning: {text}", markup=False, highlight=False)
    # Not through rich, which would break lines within words that a shell reads.
    print(f"\n{_in_lines(advice.command)}")


def _in_lines(command: str) -> str:
    """A setting a line, each but the last with the shell's sign that the command goes on."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)


def _findings(advice: Advice) -> Table:
    findings, machine, size = advice.findings, advice.machine, advice.model
    table = Table("Looked at", "Found", title="Data and machine", title_justify="left")
    for name, text in _data_rows(findings):
        table.add_row(name, text)
    table.add_row(
        "model",
        f"{size.num_parameters / 1e6:,.1f}M parameters, context {size.context or 'without limit'}",
    )
    kind = "given" if machine.given else "free now"
    table.add_row(
        "machine",
        f"{machine.device}, {machine.precision}, {gibibytes(machine.memory_bytes)} {kind}, "
        f"{gibibytes(machine.usable_bytes)} of it usable",
    )
    return table


def _data_rows(findings: Findings) -> list[tuple[str, str]]:
    noun, tokens = findings.kind[:-1], findings.tokens
    size = (
        f"{counted(findings.num_records, noun)}, {counted(findings.num_prompts, 'distinct prompt')}"
    )
    rows = [
        ("data", f"{findings.source}, layout: {findings.layout}"),
        ("size", f"{size}; {counted(findings.num_ties, 'tie')}, {findings.num_refused} refused"),
    ]
    if findings.kind == "labels":
        bad = findings.num_records - findings.num_desirable
        possible = counted(findings.num_possible_pairs, "pair")
        rows.append(
            (
                "labels",
                f"{findings.num_desirable} desirable, {bad} undesirable; {possible} possible",
            )
        )
    elif findings.kind == "pairs":
        rows.append(("agreement", _agreement(findings)))
        rows.append(("length", length_text(findings)))
    some = f"{tokens.num_sampled} records"
    rows += [
        ("prompts", f"{_spread(tokens.prompt)} ({some})"),
        ("completions", _completions(findings)),
        ("together", _spread(tokens.total)),
        ("cut", _cut(findings)),
    ]
    return rows


def _completions(findings: Findings) -> str:
    if findings.kind == "prompts":
        return f"sampled, counted as {findings.tokens.completion.longest} tokens"
    return _spread(findings.tokens.completion)


def _agreement(findings: Findings) -> str:
    text = f"{findings.signal}: {noise_text(findings)}"
    if noise := findings.noise:
        text += f"; mean agreement {noise.mean_agreement:.1%}, {noise.flip_probability:.1%} of the "
        text += "labels wrong by estimate"
    return text


def _spread(percentiles: Percentiles) -> str:
    return (
        f"{percentiles.p50} tokens at the median, {percentiles.p90} at 90%, "
        f"{percentiles.p99} at 99%, at most {percentiles.longest}"
    )


def _cut(findings: Findings) -> str:
    cuts = (findings.tokens.cut, findings.tokens.cut_by_default)
    return "; ".join(
        f"{cut.records:.1%} of the records at {cut.max_length}/{cut.max_prompt_length}"
        for cut in cuts
    )


def _methods(advice: Advice) -> Table:
    columns = ("", "Method", "Points", "Because", "Memory")
    table = Table(*columns, title=f"Methods, goal {advice.goal}", title_justify="left",
                  show_lines=True)  # fmt: skip
    for place, one in enumerate(advice.ranked[:NUM_SHOWN], start=1):
        plan = one.plan
        reasons = "\n".join(f"{reason.points:+g} {reason.text}" for reason in one.reasons)
        memory = f"{gibibytes(plan.lora_bytes)} LoRA\n{gibibytes(plan.full_bytes)} all weights"
        table.add_row(str(place), one.method, f"{one.points:g}", reasons, memory)
    return table


def _others(advice: Advice) -> Table:
    table = Table("Method", "Points", "Why not", title="The rest", title_justify="left")
    for one in advice.ranked[NUM_SHOWN:]:
        table.add_row(one.method, f"{one.points:g}", one.why_not)
    for other in advice.excluded:
        table.add_row(other.method, "-", other.why)
    return table


def _settings(advice: Advice) -> Table:
    title = f"Settings for {advice.best.method}"
    table = Table("Setting", "Value", "Because", title=title, title_justify="left")
    for name, setting in advice.settings.items():
        value = setting.value
        shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
        table.add_row(name, shown, setting.why)
    return table
