"""Runs in several processes that are killed, fail, or go on with another number of processes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture
def keys(tiny_keys: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return a run of 8 steps of 8 pairs, all weights trained and divided."""
    return {
        **tiny_keys,
        **{"num_train_epochs": 4, "per_device_train_batch_size": 2, "lora_r": 0},
        **{"gradient_accumulation_steps": 2, "learning_rate": 1e-3, "save_steps": 2},
        **{"save_total_limit": 9, "sharding": "full", "adam_epsilon": 1e-4},
        "output": str(tmp_path / "run"),
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same(found: Path, expected: Path) -> None:
    theirs = weights(expected)
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0)


def test_a_checkpoint_of_two_processes_is_gone_on_with_by_one_two_and_four(
    launch: Any, keys: dict[str, Any], as_killed: Any, tmp_path: Path
) -> None:
    launch(2, "orpo", keys)
    run = Path(keys["output"])
    for count in (1, 2, 4):
        again = as_killed(run, tmp_path / f"by-{count}", after=4)
        shutil.rmtree(again / "model", ignore_errors=True)
        divided = {
            **keys,
            **{"output": str(again), "gradient_accumulation_steps": 4 // count},
            **{"resume": "true", "sharding": "full" if count > 1 else "off"},
        }
        assert "resumed from step 4" in launch(count, "orpo", divided)
        assert_same(again, run)


def test_runs_that_are_killed_at_any_moment_go_on_as_if_they_had_not_been(
    start: Any, launch: Any, keys: dict[str, Any], tmp_path: Path
) -> None:
    whole = {**keys, "output": str(tmp_path / "whole"), "save_steps": 1, "num_train_epochs": 20}
    launch(2, "orpo", whole)
    chance = random.Random(0)
    killed = {**whole, "output": str(tmp_path / "killed"), "resume": "true"}
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for attempt in range(10):
        process = start("orpo", killed)
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        lines += chance.randint(1, 4)
        while process.poll() is None and (
            not metrics.exists() or metrics.read_text().count("\n") < lines
        ):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        for child in children if attempt % 2 else children[-1:]:
            child.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # where one is killed, the launcher ends the other
        assert process.returncode != 0, "it ended before it was killed"
    launch(2, "orpo", killed)
    assert_same(tmp_path / "killed", tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").open()]
    assert steps == sorted(set(steps))


def test_a_launch_whose_processes_are_told_twice_to_end_saves_its_step_and_goes_on(
    start: Any, launch: Any, keys: dict[str, Any], tmp_path: Path
) -> None:
    """As SLURM does: it signals all processes of a step, and torchrun hands its signal on."""
    whole = {**keys, "output": str(tmp_path / "whole"), "save_steps": 500, "num_train_epochs": 20}
    launch(2, "orpo", whole)
    told = {**whole, "output": str(tmp_path / "told")}
    metrics = tmp_path / "told" / "metrics.jsonl"
    process = start("orpo", told)
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.01)
    for one in (*psutil.Process(process.pid).children(), psutil.Process(process.pid)):
        one.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "which is saved" in said
    assert f"resumed from step {metrics.read_text().count(chr(10))}" in launch(
        2, "orpo", {**told, "resume": "true"}
    )
    assert_same(tmp_path / "told", tmp_path / "whole")


BREAKS = """
import os

from penchant.models.scoring import Scorer

judged, evaluating = [], Scorer.evaluating


def no_room(scorer):
    # Once, in the third check: the first measures what checks cost.
    if os.environ["RANK"] == "1" and len(judged) == 2:
        judged.clear()
        raise MemoryError("no room here")
    return evaluating(scorer)


Scorer.evaluating = no_room


def score(completions, **_):
    judged.append(1)
    return [float(len(text)) for text in completions]


def no_judge(completions, **_):
    if os.environ["RANK"] == "1":
        raise OSError("no room here")
    return [float(len(text)) for text in completions]
"""


@pytest.mark.parametrize(
    ("sharding", "reward", "ends"),
    [("off", "score", False), ("full", "score", True), ("full", "no_judge", False)],
)
def test_a_process_whose_monitored_answers_fail_lets_no_other_wait(
    start: Any,
    keys: dict[str, Any],
    tmp_path: Path,
    held_out_file: Path,
    sharding: str,
    reward: str,
    ends: bool,
) -> None:
    """The run ends where a pass of divided weights fails; else it goes on without monitors."""
    (tmp_path / "breaks.py").write_text(BREAKS)
    watched = {"eval_data": str(held_out_file), "monitor_prompts": 4, "monitor_steps": 1}
    watched |= {"monitor_length": 4, "monitor_reward": f"{tmp_path / 'breaks.py'}:{reward}"}
    watched |= {"eval_on_start": False, "max_steps": 2, "sharding": sharding, "eval_samples": 0}
    process = start("orpo", {**keys, **watched})
    _, said = process.communicate(timeout=60)
    assert "no room here" in said
    if ends:
        assert process.returncode != 0
        assert "in step with the others" in said
    else:
        assert process.returncode == 0, said
        assert "monitor-failed" in said


REWARD = """
import os

def fails_on_one(completions, **_):
    if os.environ["RANK"] == "1":
        raise ValueError("no judge here")
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def sampled(keys: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return a run whose rewards fail in its second process."""
    (tmp_path / "reward.py").write_text(REWARD)
    return {
        **{key: keys[key] for key in ("model", "max_length", "output", "monitor_prompts")},
        **{"data": keys["data"], "reward": f"{tmp_path / 'reward.py'}:fails_on_one"},
        **{"max_completion_length": 4, "batch_size": 8, "num_generations": 2, "max_steps": 4},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
    }


def test_a_process_that_fails_ends_all_with_its_message_within_a_minute(
    start: Any, sampled: dict[str, Any]
) -> None:
    process = start("grpo", sampled)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "no judge here" in told


def test_answers_are_left_out_though_all_of_one_process_are(
    launch: Any, sampled: dict[str, Any]
) -> None:
    launch(2, "grpo", {**sampled, "on_reward_error": "drop"})
    lines = (Path(sampled["output"]) / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if "loss" in row]
    assert [row["reward/dropped"] for row in steps] == [4.0] * 4


def test_two_launchers_on_one_network_train_one_run(
    start: Any, launch: Any, keys: dict[str, Any], free_port: Any, tmp_path: Path
) -> None:
    launch(2, "orpo", keys)
    shared = {**keys, "output": str(tmp_path / "nodes"), "sharding": "hybrid"}
    rendezvous = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d")
    where = ("--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "one")
    nodes = [start("orpo", shared, *rendezvous, *where) for _ in range(2)]
    for node in nodes:
        _, told = node.communicate(timeout=180)
        assert node.returncode == 0, told
    assert_same(tmp_path / "nodes", Path(keys["output"]))
