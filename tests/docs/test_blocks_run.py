"""Every code block runs as it is printed, on a tiny model and few rows.

`<!-- not run: WHY -->` before a block, or `<!-- blocks not run: WHY -->` on a page, says why it is
only read (test_blocks.py). The quickstart and the tutorials run whole, in test_tutorials.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.cli.main import main

from .conftest import BLOCKS, Block, commands_of

# Until a person or another program has done its part, these do not end.
WAITS = {"label", "export", "push", "demo"}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def workshop(
    tmp_path_factory: pytest.TempPathFactory,
    training_file: Path,
    held_out_file: Path,
    as_labels: Any,
    tiny_keys: dict[str, Any],
) -> Path:
    """A folder with what readers have: data of every kind, two runs and a reward model."""
    folder = tmp_path_factory.mktemp("workshop")
    pairs = [json.loads(line) for line in training_file.read_text().splitlines()]
    first = pairs[0]
    pairs.append({**first, "chosen": first["rejected"], "rejected": first["chosen"]})
    for file in (
        "pairs.jsonl",
        "a.jsonl",
        "b.jsonl",
        "shards/c.jsonl",
        "download/train_prefs-00000-of-00001.jsonl",
    ):
        _write(folder / file, pairs)
    _write(folder / "good.jsonl", pairs)
    for file in ("held-out.jsonl", "download/test_prefs-00000-of-00001.jsonl"):
        shutil.copy(held_out_file, folder / file)
    shutil.copy(as_labels(training_file), folder / "labels.jsonl")
    _write(folder / "prompts.jsonl", [{"prompt": one["prompt"], "answer": "yes"} for one in pairs])
    thumbs = [{"prompt": one["prompt"], "answer": one[side], "thumb": side == "chosen"}
              for one in pairs for side in ("chosen", "rejected")]  # fmt: skip
    _write(folder / "thumbs.jsonl", thumbs)
    answers = [{"prompt": f"Say {n}.", "completion_a": f"{n}", "completion_b": "No.", "label": "a",
                "annotator": "ann"} for n in range(9)]  # fmt: skip
    _write(folder / "answers.jsonl", answers)
    (folder / "rewards.py").write_text(
        "def score(completions, **columns):\n    return [len(set(text)) for text in completions]\n"
    )
    sums = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(16)]
    _write(folder / "problems.jsonl", sums)
    votes = [{"instruction": f"Say {n}.", "response1": f"{n}", "response2": "No.", **dict.fromkeys(
        ("annotator1", "annotator2", "annotator3"), 1)} for n in range(9)]  # fmt: skip
    (folder / "pandalm.json").write_text(json.dumps(votes))
    _write(folder / "ratings.jsonl", [
        {"prompt": f"Say {n}.", "completions": [f"{n}", "No."], "ratings": [5, 1]}
        for n in range(9)])  # fmt: skip
    penchant.train("dpo", **{**tiny_keys, "output": folder / "run", "max_steps": 2})
    shutil.copytree(folder / "run", folder / "other-run")
    penchant.train("reward", **{**tiny_keys, "output": folder / "judge", "max_steps": 2})
    for name in ("recipe", "dpo"):
        (folder / f"{name}.yaml").write_text("method: dpo\n")
    return folder


# Names that stand for what a reader has; `M` is the model everywhere.
NAMES = {
    "D": "pairs.jsonl", "E": "held-out.jsonl", "R": "judge", "REWARD_RUN": "judge", "RUN": "run",
    "OTHER": "other-run", "REWARD": "length:8", "judge-run": "judge", "OUT": "out.jsonl",
    "DIR": "parts", "FILE": "pairs.jsonl", "gsm8k": "length:8",
}  # fmt: skip
MODELS = ("M", "MODEL", "T", "HuggingFaceTB/SmolLM2-135M-Instruct")
# What keeps a run short, where the command does not set it.
SHORT = {
    "max_steps": "2", "max_length": "64", "monitor_prompts": "0",
    "eval_samples": "0", "learning_rate": "1e-3",
}  # fmt: skip
SAMPLING = {
    "max_completion_length": "8", "batch_size": "8", "per_device_train_batch_size": "8",
    "gradient_accumulation_steps": "1",
}  # fmt: skip
SAMPLERS = ("ppo", "grpo", "rloo", "online_dpo", "distill")


def _shortened(words: list[str], model: str) -> list[str]:
    """A command as it runs here: the names filled in, few steps, nothing that waits."""
    filled = [model if word in MODELS else NAMES.get(word, word) for word in words]
    if words[:3] == ["data", "build", "FILE"]:  # which takes what are no pairs yet
        filled[2] = "ratings.jsonl"
    command, given = filled[0], {word[2:] for word in filled if word.startswith("--")}
    more: dict[str, str] = {}
    if command in ("train", "check", "sweep", "compare"):
        more = {**SHORT, **(SAMPLING if filled[1] in SAMPLERS else {})}
        if filled[1].endswith(".yaml"):
            more |= {"model": model, "data": "pairs.jsonl"}
        if command in ("train", "check"):
            more["overwrite"] = "true"
        if command == "compare":
            more |= {"num_answers": "4", "monitor_length": "8"}
    elif command == "chat":
        more = {"max_new_tokens": "4"}
    elif filled[:2] == ["data", "build"] and "sample" in given:
        more = {"max_completion_length": "8"}
    extra = [
        word for key, value in more.items() if key not in given for word in (f"--{key}", value)
    ]
    return [*filled, *extra, *(["--once"] if command == "watch" else [])]


def _make_room(words: list[str]) -> None:
    """Take away what a command is to write: what the workshop has under a name of the page."""
    if words[:1] == ["data"] and "--output" in words:
        output = words[words.index("--output") + 1]
        if output not in words[: words.index("--output")]:
            Path(output).unlink(missing_ok=True)


def _run_shell(block: Block, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ""
    for words, target in commands_of(block.text):
        if words[0] == "echo":
            said = words[1]
        if words[0] != "penchant" or words[1] in WAITS or words[-1] == "--help":
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        out, wrong = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(wrong):
            _make_room(words[1:])
            status = main(_shortened(words[1:], model))
        assert status == 0, f"{block}: {shlex.join(words)}\n{out.getvalue()}\n{wrong.getvalue()}"
        if target:
            Path(Path(target).name).write_text(out.getvalue(), encoding="utf-8")


# What the page says beforehand, or leaves to the reader.
BEFORE = {
    "compat-trl.md": """
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "M"
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
pairs, peft_config = Dataset.from_json("pairs.jsonl"), LoraConfig(target_modules="all-linear")
prompts = Dataset.from_json("prompts.jsonl")
batches, score = [{"prompt": [f"Is {n}?" for n in range(64)]}], len
""",
    "rewards.md": 'texts = ["Is it so? yes", "no"]\n',
}


def _run_python(block: Block, model: str) -> None:
    code = BEFORE.get(block.page.name, "import penchant\n") + block.text
    for name in MODELS:
        code = code.replace(f'"{name}"', repr(model))
    if block.page.name == "rewards.md":  # the run on that page is one of a reward model
        code = code.replace("run/model", "judge/model")
    code = code.replace("bf16=True", "bf16=False").replace("max_new_tokens=256", "max_new_tokens=8")
    for output in re.findall(r'output="(\w+)"', code):
        shutil.rmtree(output, ignore_errors=True)
    exec(compile(code, str(block), "exec"), {"__name__": "page"})


OWN_TEST = {"quickstart.md"}
RUN = [
    block
    for block in BLOCKS
    if block.runs
    and block.language in ("sh", "python")
    and block.page.parent.name != "tutorials"
    and block.page.name not in OWN_TEST
]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in RUN}), ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(
    page: Path,
    workshop: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = str(tiny_model_dir)
    for block in (one for one in RUN if one.page == page):
        monkeypatch.chdir(shutil.copytree(workshop, tmp_path / str(block.line)))
        if block.language == "sh":
            _run_shell(block, model, monkeypatch)
        else:
            _run_python(block, model)
