"""Commands as they are typed: what help begins with, and what to type for which aim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of each command, in its help; {} stands for a method.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "penchant train {} --model M --data D --output RUN [--any_key value ...]",
        "penchant train recipe.yaml [--any_key value ...]",
    ),
    "check": (
        "penchant check {} --model M --data D [--any_key value ...] [--json]",
        "penchant check recipe.yaml",
    ),
    "sweep": (
        "penchant sweep {} --model M --data D --train_fraction F --output S --beta 0.01,0.1,0.3",
    ),
    "compare": (
        "penchant compare --methods dpo,simpo,orpo --model M --data D --train_fraction 0.8",
        "penchant compare --methods dpo,simpo --dpo.beta 0.01,0.1 --simpo.beta 2,10 --model M "
        "--data D --eval_data E --monitor_reward R --output C",
    ),
    "evaluate": (
        "penchant evaluate --model RUN --data held-out.jsonl",
        "penchant evaluate --model RUN --data a.jsonl --data b.jsonl --reference M --json",
        "penchant evaluate --judge J --data benchmark.jsonl",
        "penchant evaluate --model RUN --prompts prompts.jsonl --reward R --against OTHER",
        "penchant evaluate --model RUN --tasks gsm8k,ifeval",
    ),
    "advise": ("penchant advise --data pairs.jsonl --model M --memory 24GiB",),
    "data build": (
        "penchant data build votes.jsonl --output pairs.jsonl",
        "penchant data build prompts.jsonl --sample M --reward R --output pairs.jsonl",
    ),
    "data convert": ("penchant data convert pairs.jsonl --to labels --output labels.jsonl",),
    "data split": ("penchant data split pairs.jsonl --parts train=0.9,test=0.1 --output parts",),
    "data inspect": ("penchant data inspect pairs.jsonl --html data.html",),
    "data clean": ("penchant data clean pairs.jsonl --drop duplicates,ties --output clean.jsonl",),
    "label": (
        "penchant label pairs.jsonl",
        "penchant label pairs.jsonl --annotators ann,bob --overlap 2",
        "penchant label pairs.jsonl --export answers.jsonl",
    ),
    "report": ("penchant report RUN", "penchant report RUN OTHER --output report.html"),
    "watch": ("penchant watch RUN",),
    "methods": ("penchant methods", "penchant methods --model M"),
    "demo": ("penchant demo --output runs/demo",),
    "explain": ("penchant explain length-bias",),
    "config": ("penchant config {} --model M --data D > recipe.yaml",),
    "recipes": ("penchant recipes", "penchant recipes dpo --output my-dpo.yaml"),
    "completion": ("penchant completion bash > penchant-completion.sh",),
    "merge": ("penchant merge RUN --output FOLDER",),
    "chat": ("penchant chat RUN", "penchant chat RUN --prompts prompts.jsonl --json"),
    "export": ("penchant export RUN --gguf --outtype q8_0",),
    "push": ("penchant push RUN owner/name --dry_run", "penchant push RUN owner/name"),
}
# What a person has or wants, and the commands for it.
JOURNEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("see it work", ("penchant demo",)),
    (
        "pairs of answers, one of them preferred",
        (
            "penchant data inspect pairs.jsonl --html data.html",
            "penchant train dpo --model M --data pairs.jsonl --train_fraction 0.9 --output run",
        ),
    ),
    (
        "answers with thumbs up and down",
        ("penchant train kto --model M --data thumbs.jsonl --train_fraction 0.9 --output run",),
    ),
    (
        "votes, ratings, rankings or logs of chats",
        ("penchant data build raw.jsonl --output pairs.jsonl",),
    ),
    (
        "answers to compare by hand, or by a judge",
        (
            "penchant label pairs.jsonl",
            "penchant label pairs.jsonl --judge http://127.0.0.1:8000/v1",
            "penchant label pairs.jsonl --export answers.jsonl",
            "penchant data build answers.jsonl --output train.jsonl",
        ),
    ),
    (
        "a reward of your own, a Python function",
        (
            "penchant train grpo --model M --data prompts.jsonl --reward rewards.py:score "
            "--output run",
        ),
    ),
    (
        "a reward model, and PPO against it",
        (
            "penchant train reward --model M --data pairs.jsonl --output judge",
            "penchant train ppo --model M --data prompts.jsonl --reward judge --output run",
        ),
    ),
    (
        "to know which method, or which beta",
        (
            "penchant advise --data pairs.jsonl --model M",
            "penchant sweep dpo --model M --data pairs.jsonl --train_fraction 0.9 "
            "--beta 0.01,0.03,0.1 --output sweep",
            "penchant compare --methods dpo,simpo,orpo --model M --data pairs.jsonl "
            "--train_fraction 0.8",
        ),
    ),
    ("a run in a file", ("penchant recipes", "penchant train recipe.yaml")),
    (
        "after a run",
        (
            "penchant report run",
            "penchant evaluate --model run --data held-out.jsonl",
            "penchant evaluate --model run --prompts prompts.jsonl --reward R",
            "penchant chat run",
            "penchant merge run",
            "penchant export run --gguf",
            "penchant push run owner/name",
        ),
    ),
)


def usage(command: str, method: str = "", options: Mapping[str, Any] | None = None) -> str:
    """The examples of a command as argparse shows its usage.

    Args:
        command: as it is typed.
        method: of the commands that name one.
        options: the method's own keys; those that it cannot do without are in the examples.
    """
    examples = "\n       ".join(one.replace("{}", method) for one in EXAMPLES[command])
    if options is None:
        return examples
    needed = [name for name, field in options.items() if field.is_required()]
    given = "".join(f" --{name} {name[0].upper()}" for name in needed)
    varied = "--beta 0.01,0.1,0.3" if "beta" in options else "--learning_rate 1e-5,1e-4"
    return examples.replace("--data D", f"--data D{given}").replace("--beta 0.01,0.1,0.3", varied)


def journeys() -> str:
    """What to type for which aim, for a terminal."""
    lines = ["Penchant: preference tuning of language models.", ""]
    for aim, commands in JOURNEYS:
        lines += [f"{aim}:", *(f"    {command}" for command in commands)]
    lines += ["", "penchant --help lists every command, penchant COMMAND --help what it takes."]
    return "\n".join(lines)
