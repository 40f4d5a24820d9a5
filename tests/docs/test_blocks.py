"""Every code block is what it says: commands parse, keys exist, code compiles.

Each command is parsed by the real parser and its keys are checked as a run checks them; files of
keys are read; make's targets, scripts with their options, and extras exist.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import yaml

from penchant.cli.arguments import build_parser, lists
from penchant.cli.words import OF_METHODS, as_parsed
from penchant.config.keys import load_config

from .conftest import BLOCKS, ROOT, Block, commands_of

# What is shown and not run; formulas stand on the pages of methods.
SHOWN = {"text", "mermaid", "console"}
# Programs of others, which are not checked.
OTHERS = {
    "git",
    "vllm",
    "until",
    "curl",
    "do",
    "done",
    "if",
    "[",
    "then",
    "fi",
    "trap",
    "wait",
    "exit",
    "export",
    "srun",
    "scontrol",
    "head",
    "echo",
    "source",
    "pytest",
}


def test_every_block_has_a_language() -> None:
    known = {"sh", "python", "yaml", "json", "jsonl", *SHOWN}
    assert [str(block) for block in BLOCKS if block.language not in known] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=str)
def test_what_is_typed_can_be_typed(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("recipe", "mine", "run", "dpo"):
        Path(f"{name}.yaml").write_text("method: dpo\nmodel: m\ndata: d\n")
    for words, _ in commands_of(block.text):
        if "-m" in words and words[words.index("-m") + 1] == "penchant":
            words = ["penchant", *words[words.index("-m") + 2 :]]
        program = words[0].rpartition("/")[2]
        assert program in {*CHECKS, *OTHERS}, f"{block}: what is {words[0]}?"
        if program in CHECKS:
            CHECKS[program](words[1:])


def _typed(words: list[str]) -> None:
    words = ["dpo" if word == "METHOD" else word for word in words]
    if words[-1] == "--help":
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit, match="0"):
            build_parser().parse_known_args(as_parsed(words))
        return
    parsed, unknown = build_parser().parse_known_args(as_parsed(words))
    assert unknown == []
    values = vars(parsed)
    command = values.pop("command")
    methods = [values.pop("method", "")]
    if command == "compare":
        methods = values.pop("methods").split(",")
    elif command not in OF_METHODS:
        return
    of_commands = ("json", "no_probe", "num_processes", "node_size", "worker", "yardstick",
                   "num_answers")  # fmt: skip
    file = values.pop("config", None)
    for method in methods:
        keys = {
            key: value.split(",")[0] if lists([method], key, value) else value
            for key, value in values.items()
            if key not in of_commands and "." not in key
        }
        if command == "config":
            keys = {"model": "m", "data": "d", **keys}
        load_config(method.replace("-", "_"), keys, file=file)


def _target(words: list[str]) -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    assert {*words} <= {*targets}


def _script(words: list[str]) -> None:
    script = ROOT / words[0]
    if "/" in words[0]:  # the others are written by the reader
        text = script.read_text(encoding="utf-8")
        for option in (word for word in words[1:] if word.startswith("--")):
            assert f'"{option}"' in text, f"{words[0]} has no {option}"


def _extras(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = re.findall(r"^([\w-]+) = \[", table, re.M)
    for extras in re.findall(r"\[(.*?)\]", " ".join(words)):
        assert {*extras.split(",")} <= {*known}


def _hooks(words: list[str]) -> None:
    """What `pre-commit install` installs is there."""
    assert words == ["install"]
    assert yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]


CHECKS = {
    "penchant": _typed, "make": _target, "python": _script, "pip": _extras, "pre-commit": _hooks,
}  # fmt: skip


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("yaml", "python")], ids=str)
def test_keys_and_code_are_well_formed(block: Block) -> None:
    if block.language == "python":
        assert ast.parse(block.text).body
        return
    keys = yaml.safe_load(block.text)
    if "url" not in keys:
        method = keys.pop("method", "dpo")
        assert load_config(method, {"model": "m", "data": "d", **keys}).method == method
        return
    from penchant.core.judge import JudgeSettings
    from penchant.rl.rewards.service import RewardServiceSettings

    settings = JudgeSettings if "rubric" in keys else RewardServiceSettings
    assert settings.model_validate(keys).url == keys["url"]


@pytest.mark.parametrize("block", [b for b in BLOCKS if "json" in b.language], ids=str)
def test_rows_are_json(block: Block) -> None:
    assert all(json.loads(line) for line in block.text.splitlines())
