"""The arguments of `penchant data build`, `convert` and `split`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from penchant.cli.parser import add_command, add_shared
from penchant.core.errors import ConfigError
from penchant.core.strict_json import to_json
from penchant.data.faults import ALIKE
from penchant.data.named_words import parse_columns

# As the modules that read them have them: help must not import those.
JUDGED = ("form", "votes", "codes", "agreement", "rating_range", "turns", "text", "template")
DRAWN = ("reward", "n", "temperature", "top_p", "top_k", "max_completion_length",
    "max_prompt_length", "batch_size", "chat_template", "chat_template_kwargs",
    "trust_remote_code")  # fmt: skip
FORMS = "label, votes, ratings, ranking, trees, thumbs, feedback or chats"
PROJECTS = "trl, axolotl, llama-factory or openai"


def add_build(tools: Any) -> None:
    """`penchant data build`."""
    build = add_command(tools, "data build")
    _add_files(build, "a new .jsonl, .jsonl.gz or .parquet")
    add = build.add_argument
    add("--form", metavar="FORM", help=f"{FORMS}; needed where columns fit several")
    add("--votes", type=_words, metavar="COLUMN,...", help="columns with one vote each")
    add("--codes", type=_mapping, metavar="CODE=SIDE,...",
        help="what votes mean: 1=a,2=b,0=tie (also both_bad)")  # fmt: skip
    add("--agreement", type=_agreement, metavar="A",
        help="majority (default), unanimity, or the least share of votes, as 0.66")  # fmt: skip
    add("--pairs", metavar="WHICH", help="best_worst (default), best_random or all")
    add("--min_gap", type=float, metavar="X", help="least gap of ratings or ranks (default: 0)")
    add("--rating_range", type=_range, metavar="LOW,HIGH", help="ratings outside are left out")
    add("--turns", choices=("all", "first"),
        help="of chats that part early: all turns (default), or the first answers")  # fmt: skip
    _add_text(build)
    add_shared(build, seed="0")
    sampled = build.add_argument_group("pairs of sampled answers to a file of prompts")
    drawn = sampled.add_argument
    drawn(
        "--sample", dest="model", metavar="MODEL", help="a run, a model folder, a hub id, a .gguf"
    )
    drawn("--reward", action="append", metavar="R",
        help="a reward model, module:function, file.py:function or a ready one")  # fmt: skip
    drawn("--n", type=int, metavar="N", help="answers to each prompt (default: 4)")
    drawn("--temperature", type=float, metavar="X", help="the temperature of sampling (default: 1)")
    drawn("--top_p", type=float, metavar="X", help="sample from this much probability (default: 1)")
    drawn("--top_k", type=int, metavar="N", help="the likeliest tokens only (default: 0, all)")
    drawn("--batch_size", type=int, metavar="N", help="answers side by side (default: 32)")
    add_shared(sampled, max_completion_length="512", max_prompt_length="1024")
    add_shared(sampled, "chat_template", "chat_template_kwargs", "trust_remote_code")


def add_convert(tools: Any) -> None:
    """`penchant data convert`."""
    convert = add_command(tools, "data convert", to=None)
    _add_files(convert, "a new .jsonl, .jsonl.gz or .parquet")
    add = convert.add_argument
    add("--to", metavar="WHAT", help=f"labels, pairs or prompts; {PROJECTS} for its layout")
    add("--from", dest="origin", metavar="PROJECT", help=f"{PROJECTS}, where columns fit several")
    _add_text(convert)


def add_split(tools: Any) -> None:
    """`penchant data split`."""
    split = add_command(tools, "data split")
    _add_files(split, "a folder; each part becomes a file in it")
    add = split.add_argument
    add(
        "--parts",
        type=_shares,
        metavar="NAME=SHARE,...",
        help="the parts and their shares (default: train=0.9,test=0.1)",
    )
    add(
        "--by",
        metavar="COLUMN",
        help="the column whose values are spread alike over all parts (default: source)",
    )
    add("--similarity", type=float, metavar="X",
        help=f"least similarity of prompts that stay together (default: {ALIKE})")  # fmt: skip
    add("--format", metavar="F", help="jsonl (default), jsonl.gz or parquet")
    add_shared(split, seed="0")


def _add_text(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--text", metavar="chat|strings", help="write all texts as chat, or all as strings")
    add("--template", metavar="T",
        help="a Jinja file, a tokenizer's folder, chatml or human_assistant")  # fmt: skip


def _add_files(parser: argparse.ArgumentParser, output: str) -> None:
    add = parser.add_argument
    add("source", nargs="+", metavar="FILE", help="what to read, in any form that training takes")
    add("--output", required=True, type=Path, metavar="OUT", help=output)
    add_reading(parser)
    add_shared(parser, "strict")


def add_reading(parser: Any) -> None:
    """How a source is read, wherever one is."""
    add = parser.add_argument
    add("--split", help="which split to take of data that have several (default: train)")
    add("--columns", type=_mapping, metavar="NAME=OWN,...",
        help="your own names of columns, as chosen=better,rejected=worse")  # fmt: skip


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _mapping(text: str) -> dict[str, str]:
    try:
        return parse_columns(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _shares(text: str) -> dict[str, float]:
    try:
        return {name: float(share) for name, share in _mapping(text).items()}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be NAME=SHARE,..., got {text!r}") from error


def _agreement(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be LOW,HIGH, got {text!r}") from error
    return low, high


def run_build(values: dict[str, Any]) -> None:
    """Build from judgements, or from samples where a model is given."""
    drawn = "model" in values
    unfit = sorted(values.keys() & set(JUDGED if drawn else DRAWN))
    if unfit:
        without = "without" if drawn else "with"
        raise ConfigError(f"--{unfit[0]} goes only {without} --sample MODEL; leave it out")
    if drawn and "reward" not in values:
        raise ConfigError("--sample needs --reward, which scores the answers")
    if drawn:
        from penchant.commands.draw_pairs import build_with_model

        print(build_with_model(**values).summary())
        return
    from penchant.data.building import build

    print(build(**values).summary())


def add_commands(tools: Any) -> None:
    """Add both to the tools of `penchant data`."""
    inspect = add_command(tools, "data inspect")
    usual = inspect.add_argument_group("usually set")
    usual.add_argument("--html", type=Path, metavar="PATH",
        help="write the report as one page, with plots")  # fmt: skip
    add_shared(usual, "json")
    _add_inspect(inspect, usual)
    clean = add_command(tools, "data clean")
    usual = clean.add_argument_group("usually set")
    add = usual.add_argument
    add("--drop", required=True, metavar="ID,ID", help="findings whose rows go")
    add("--output", required=True, type=Path, metavar="OUT",
        help="a new .jsonl, .jsonl.gz or .parquet file")  # fmt: skip
    _add_inspect(clean, usual)


def _add_inspect(parser: argparse.ArgumentParser, usual: Any) -> None:
    parser.add_argument(
        "data", nargs="+", metavar="FILE", help="data in any form that training takes"
    )
    add = usual.add_argument
    add(
        "--eval_data",
        action="append",
        metavar="E",
        help="evaluation data: rows with its prompts are found",
    )
    add("--model", help="the model whose tokenizer measures lengths")
    rest = parser.add_argument_group("more")
    add_shared(rest, max_length="1024", max_prompt_length="half of max_length")
    add = rest.add_argument
    add(
        "--min_agreement",
        type=float,
        metavar="X",
        help="the least share of votes for a preference (default: 0.6)",
    )
    add("--noise_rate", type=float, metavar="X", help="share of flipped labels, if you know it")
    add("--sample", type=int, metavar="N",
        help="records to measure noise, languages and tokens on (default: 10000)")  # fmt: skip
    add("--eval_split", help="which split to take of eval_data (default: as split)")
    add_reading(rest)
    add(
        "--processes",
        type=int,
        metavar="N",
        help="how many processes read at once (default: one per core)",
    )
    add_shared(rest, "chat_template", "trust_remote_code")


def run_inspect(values: dict[str, Any]) -> None:
    """Inspect, and print."""
    from penchant.audit import inspect

    as_json = values.pop("json", False)
    report = inspect(values.pop("data"), **values)
    if as_json:
        print(to_json(report.as_dict(), indent=2))
        return
    from penchant.cli.show_audit import print_report

    print_report(report)
    if "html" in values:
        print(f"page: {values['html']}")


def run_clean(values: dict[str, Any]) -> None:
    """Clean, and say what went."""
    from penchant.audit import clean

    drop = [name.strip() for name in values.pop("drop").split(",") if name.strip()]
    print(clean(values.pop("data"), drop=drop, **values).summary())
