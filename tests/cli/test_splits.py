"""A split that is not there: the message names what to type, and what it names works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from penchant.cli.main import main

PAIRS = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": f"not {n}"} for n in range(6)]
COMMANDS = {
    "check": "check dpo --model {model} --data {data} --no_probe",
    "held out": "check dpo --model {model} --data {pairs} --eval_data {data} --no_probe",
    "evaluate": "evaluate --model {model} --reference {model} --data {data}",
    "advise": "advise --model {model} --data {data}",
    "build": "data build {votes} --output {out}.jsonl",
    "convert": "data convert {data} --to labels --output {out}.jsonl",
    "split": "data split {data} --output {out}",
    "inspect": "data inspect {data}",
    "inspect held out": "data inspect {pairs} --eval_data {data}",
    "clean": "data clean {data} --drop ties --output {out}.jsonl",
}


@pytest.fixture
def files(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    """Files of two lists, and one of pairs alone."""
    votes = [
        {"prompt": "p", "completion_a": f"{n}!", "completion_b": f"{n}?", "votes": ["a"]}
        for n in range(3)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    for name, rows in (("data", PAIRS), ("votes", votes)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"good": rows, "spare": rows[:2]}))
    names = {name: tmp_path / f"{name}.json" for name in ("data", "votes")}
    return {**names, "pairs": tmp_path / "pairs.jsonl", "out": tmp_path / "out",
            "model": tiny_model_dir}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_option_that_a_missing_split_asks_for_is_there(
    name: str, files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = COMMANDS[name].format(**files).split()
    main(words)
    told = "".join(capsys.readouterr())
    option = "--eval_split" if "held out" in name else "--split"
    assert "it has: good, spare" in told
    (given,) = set(re.findall(r"such as (--\w+ \w+)", told))
    assert given == f"{option} good"
    done = main([*words, *given.split()])
    told = "".join(capsys.readouterr())
    assert "it has: good" not in told
    assert done == 0, told
