"""`penchant data inspect` and `penchant data clean` on the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_commands(tools: Any) -> None:
    """Add both to the tools of `penchant data`."""
    inspect = tools.add_parser(
        "inspect",
        help="find what is wrong with preference data",
        description="Ties, duplicates, contradictions, noise, biases, leaks, lengths: each with "
        "its rows and a remedy.",
        argument_default=argparse.SUPPRESS,
    )
    inspect.set_defaults(command="data inspect")
    _add_inspect(inspect)
    add = inspect.add_argument
    add("--html", type=Path, metavar="PATH", help="write the report as one page, with plots")
    add("--json", action="store_true", help="the whole report as JSON, on standard output")
    clean = tools.add_parser(
        "clean",
        help="drop what inspect found, by name",
        description="Write the data without the rows of some findings, and those to OUT.removed.",
        argument_default=argparse.SUPPRESS,
    )
    clean.set_defaults(command="data clean")
    add = clean.add_argument
    add("--drop", required=True, metavar="ID,ID", help="findings whose rows go")
    add("--output", required=True, type=Path, metavar="OUT",
        help="a new .jsonl, .jsonl.gz or .parquet file")  # fmt: skip
    _add_inspect(clean)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", nargs="+", metavar="FILE", help="in any form that training takes")
    add("--eval_data", metavar="E", help="evaluation data: rows with its prompts are found")
    add("--model", help="whose tokenizer measures lengths")
    add("--max_length", type=int, help="tokens of prompt and completion (default: 1024)")
    add("--max_prompt_length", type=int, help="tokens of the prompt (default: half of that)")
    add("--min_agreement", type=float, metavar="X", help="share of votes (default: 0.6)")
    add("--noise_rate", type=float, metavar="X", help="share of flipped labels, if you know it")
    add("--sample", type=int, metavar="N",
        help="records for noise, languages and tokens (default: 10000)")  # fmt: skip
    add("--split", help="of a source that has several (default: train)")
    add("--processes", type=int, metavar="N", help="that read at once (default: one a core)")
    add("--chat_template", help="a Jinja file in place of the model's")
    add("--trust_remote_code", action="store_true",
        help="run code that comes with the model")  # fmt: skip


def run_inspect(values: dict[str, Any]) -> None:
    """Inspect, and print."""
    from penchant.data.audit import inspect

    as_json = values.pop("json", False)
    report = inspect(values.pop("data"), **values)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
        return
    from penchant.data.audit.terminal import print_report

    print_report(report)
    if "html" in values:
        print(f"page: {values['html']}")


def run_clean(values: dict[str, Any]) -> None:
    """Clean, and say what went."""
    from penchant.data.audit import clean

    drop = [name.strip() for name in values.pop("drop").split(",") if name.strip()]
    print(clean(values.pop("data"), drop=drop, **values).summary())
