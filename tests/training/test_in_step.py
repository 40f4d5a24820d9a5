"""What one of several processes meets, all hear of; what one of them writes, all find."""

from __future__ import annotations

import json
import os
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import penchant
from penchant.cli.main import main
from penchant.commands.merge import merge
from penchant.core.atomic import write_atomically


def test_a_check_tells_in_all_processes_what_one_alone_meets(
    tmp_path: Path, tiny_keys: dict[str, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = penchant.check

    def checked(method: str, **keys: Any) -> None:
        if os.environ["RANK"] == "1":
            keys["data"] = str(tmp_path / "of another node.jsonl")
        (error,) = check(method, **keys).errors
        assert error.what.startswith("process 1: ")
        assert "of another node" in f"{error.what}; {error.remedy}"

    monkeypatch.setattr(penchant, "check", checked)
    fork("dpo", {**tiny_keys, "output": tmp_path / "run"}, command="check")


@pytest.mark.parametrize(("mistaken", "told"), [("1", "process 1: beta"), ("01", "beta")])
def test_a_check_as_json_tells_in_its_first_process_of_a_wrong_key_in_any(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    fork: Any,
    monkeypatch: pytest.MonkeyPatch,
    mistaken: str,
    told: str,
) -> None:
    """The others print nothing, and do not fail: the launcher would end the first one for it."""

    def checked(method: str, **keys: Any) -> None:
        rank = os.environ["RANK"]
        keys |= {"beta": -1} if rank in mistaken else {}
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        with (tmp_path / rank).open("w") as shown, redirect_stdout(shown):
            status = main(["check", method, *words, "--json"])
        assert status == (rank == "0")

    monkeypatch.setattr(penchant, "check", checked)
    fork("dpo", {**tiny_keys, "output": tmp_path / "run"}, command="check")
    (error,) = json.loads((tmp_path / "0").read_text())["findings"]
    assert (error["id"], error["severity"]) == ("configuration", "error")
    assert error["what"].startswith(f"{told} should be greater than 0, got '-1'")
    assert not (tmp_path / "1").read_text()


def test_a_check_tells_in_all_processes_which_records_one_alone_has(
    tmp_path: Path, tiny_keys: dict[str, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both find is told once, and beside it what the second one finds otherwise."""
    rows = Path(tiny_keys["data"]).read_text().splitlines()
    long = [json.dumps({"prompt": "Is 99?", "chosen": " yes" * n, "rejected": " no"})
            for n in (40, 50)]  # fmt: skip
    for rank, own in enumerate((long[:1], long)):
        (tmp_path / f"{rank}.jsonl").write_text("\n".join([*rows, *own]) + "\n")
    check = penchant.check

    def checked(method: str, **keys: Any) -> None:
        keys["data"] = str(tmp_path / f"{os.environ['RANK']}.jsonl")
        findings = check(method, probe=False, **keys).findings
        first, second = (one.what for one in findings if one.id == "answers-cut")
        assert first.startswith("1 completion (2.0%) cut by max_length 64")
        assert second.startswith("process 1: 2 completions (3.8%) cut by max_length 64")
        assert sum(one.id == "no-held-out" for one in findings) == 1

    monkeypatch.setattr(penchant, "check", checked)
    fork("dpo", {**tiny_keys, "output": tmp_path / "run"}, command="check")


@pytest.mark.parametrize("probe", [True, False])
def test_a_check_asks_a_reward_in_one_of_its_processes(
    tmp_path: Path,
    few_keys: dict[str, Any],
    fork: Any,
    monkeypatch: pytest.MonkeyPatch,
    probe: bool,
) -> None:
    """It may be paid for; where it fails, all processes hear of that."""
    check, asked = penchant.check, tmp_path / "asked"

    def reward(completions: list[str], **_: Any) -> list[float]:
        with asked.open("a") as file:
            file.write(os.environ["RANK"])
        return [0.0] * len(completions)

    def no_reward(completions: list[str], **_: Any) -> list[float]:
        raise OSError("no answer")

    def checked(method: str, **keys: Any) -> None:
        found = check(method, **keys, reward=reward)
        assert not found.errors
        assert bool(found.trials) == (os.environ["RANK"] == "0")
        (error,) = check(method, **keys, reward=no_reward).errors
        assert (error.id, "no answer" in error.what) == ("reward", True)

    estimate = SimpleNamespace(finding=lambda: None)
    monkeypatch.setattr("penchant.commands.check.estimate_run", lambda *_, **__: estimate)
    monkeypatch.setattr(penchant, "check", checked)
    answers = {"batch_size": 16, "num_generations": 4, "max_completion_length": 4, "probe": probe}
    fork("grpo", {**few_keys, **answers, "output": tmp_path / "run"}, command="check")
    assert asked.read_text() == "0"


def late(write: Any) -> Any:
    """Let the leader write so slowly that the others would be gone."""

    def wait(*given: Any, **named: Any) -> Any:
        time.sleep(0.5)
        return write(*given, **named)

    return wait


@pytest.mark.parametrize(
    ("command", "method", "changes", "file"),
    [
        ("sweep", "dpo", {"vary": {"beta": [0.1]}}, "sweep.json"),
        ("train", "reward", {"ensemble": 2}, "ensemble.json"),
    ],
)
def test_what_follows_in_any_process_finds_the_files_that_the_leader_writes_last(
    tmp_path: Path,
    few_keys: dict[str, Any],
    held_out_file: Path,
    fork: Any,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    method: str,
    changes: dict[str, Any],
    file: str,
) -> None:
    carry_out = getattr(penchant, command)

    def carried_out(method: str, **keys: Any) -> None:
        carry_out(method, **keys)
        assert (tmp_path / "output" / file).exists()

    name = f"penchant.commands.{file.removesuffix('.json')}.write_atomically"
    monkeypatch.setattr(name, late(write_atomically))
    monkeypatch.setattr(penchant, command, carried_out)
    keys = {**few_keys, **changes, "max_steps": 1, "eval_data": str(held_out_file)}
    fork(method, {**keys, "output": str(tmp_path / "output")}, command=command)


def test_what_follows_a_complete_run_finds_the_model_that_is_merged_then(
    tmp_path: Path, few_keys: dict[str, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, run = penchant.train, tmp_path / "run"
    keys = {**few_keys, "lora_r": 4, "max_steps": 1, "output": run}
    fork("orpo", keys)

    def trained(method: str, **keys: Any) -> None:
        train(method, **keys)
        assert (run / "merged" / "model.safetensors").exists()

    monkeypatch.setattr("penchant.commands.merge.merge", late(merge))
    monkeypatch.setattr(penchant, "train", trained)
    fork("orpo", {**keys, "merge": True, "resume": True})
