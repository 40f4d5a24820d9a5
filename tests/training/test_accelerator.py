"""Launches that cannot train are refused before anything is loaded, with the remedy."""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

import penchant
from penchant.core.errors import ConfigError, RunInterrupted
from penchant.core.patience import NAME, PATIENCE, patience
from penchant.core.team import WORLD_SIZES
from penchant.methods import METHODS
from penchant.models.sharding import make_mesh
from penchant.rl.sampling.vllm.server import FAILURES
from penchant.training.accelerator import make_accelerator
from penchant.training.leaving import let_gloo_rest, would_wait
from penchant.training.optimizer import optimizer_tensors
from penchant.training.restoring import load_optimizer


@pytest.fixture
def refused(tiny_keys: dict[str, Any], tmp_path: Path) -> Any:
    """What a run that could load nothing says."""

    def train() -> str:
        keys = {**tiny_keys, "model": str(tmp_path / "no model"), "data": str(tmp_path / "no data")}
        with pytest.raises(ConfigError) as caught:
            penchant.train("dpo", output=tmp_path / "run", **keys)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    return train


@pytest.mark.parametrize("name", WORLD_SIZES)
def test_processes_that_do_not_see_each_other_are_refused(
    name: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them on a machine without a GPU: each would write into one folder."""
    monkeypatch.setenv(name, "2")
    said = refused()
    assert "2 processes were launched, but this one sees 1" in said
    assert "ACCELERATE_USE_CPU=true" in said


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("DEEPSPEED", "DeepSpeed"),
        ("MEGATRON_LM", "Megatron-LM"),
        ("PARALLELISM_CONFIG", "tensor or context parallelism"),
    ],
)
def test_launches_that_are_not_supported_are_refused_by_name(
    name: str, word: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    said = refused()
    assert f"launched with {word}, which is not supported" in said
    assert "set sharding to full" in said


@pytest.mark.parametrize("told", [None, 90])
def test_other_processes_are_waited_for_longer_than_any_of_them_waits_for_a_server(
    told: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is not None:
        monkeypatch.setenv(NAME, str(told))
    given: dict[str, Any] = {}

    def begin(**settings: Any) -> None:
        given.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.distributed.init_process_group", begin)
    launched = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "h", "MASTER_PORT": 1}
    for name, value in {**launched, "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(PartialState, "_shared_state", {})
    with pytest.raises(KeyboardInterrupt):
        make_accelerator("fp32")
    longest = METHODS["grpo"].options(reward="r").vllm_server_timeout * FAILURES
    assert given["timeout"].total_seconds() == (told or PATIENCE)
    assert 2 * longest < PATIENCE


@pytest.mark.parametrize("told", ["0", "two hours", "inf", "nan"])
def test_a_wait_that_is_no_time_is_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, told)
    with pytest.raises(ConfigError, match=f"a number of seconds above 0, got {told}"):
        patience()


def mesh_of_two_nodes(rank: int, port: int) -> None:
    """Whether a node of one process waits as long for itself as for the other one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=patience()
    )
    mesh = make_mesh(torch.device("cpu"), "hybrid", 2, 1)
    cpu = torch.device("cpu")
    waits = [group._get_backend(cpu).options._timeout for group in mesh.get_all_groups()]
    torch.distributed.barrier()  # the first process serves the store that the other still reads
    torch.distributed.destroy_process_group()
    assert waits == [patience()] * 2, waits


def test_nodes_wait_for_each_other_as_long(free_port: Any) -> None:
    context, port = multiprocessing.get_context("fork"), free_port()
    team = [context.Process(target=mesh_of_two_nodes, args=(rank, port)) for rank in range(2)]
    for one in team:
        one.start()
    for one in team:
        one.join(60)
        one.kill()
    assert [one.exitcode for one in team] == [0, 0]


def test_parts_in_main_memory_are_refused_where_nothing_is_divided(
    tiny_keys: dict[str, Any], tmp_path: Path, tiny_model_dir: Path
) -> None:
    folder = tmp_path / "without weights"
    shutil.copytree(tiny_model_dir, folder, ignore=lambda *_: ["model.safetensors"])
    keys = {**tiny_keys, "model": str(folder), "sharding": "full", "offload": True}
    with pytest.raises(ConfigError, match="launch several and set sharding to full"):
        penchant.train("dpo", output=tmp_path / "run", **keys)


def test_going_back_to_before_the_first_step_forgets_the_moments() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    at_first = optimizer_tensors(optimizer, {"w": weight})
    assert not at_first
    weight.sum().backward()
    optimizer.step()
    assert optimizer.state[weight]
    load_optimizer(optimizer, {"w": weight}, at_first, lambda places: None)
    assert not optimizer.state


@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl", "gloo"])
def test_a_process_that_fails_alone_leaves_no_group_that_would_wait_for_the_others(
    backend: str,
) -> None:
    assert would_wait(backend, ConfigError("of one process")) == ("nccl" in backend)
    assert not would_wait(backend, None)
    assert not would_wait(backend, RunInterrupted("of all processes, after the same step"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the state of a thread")
def test_a_process_does_not_end_before_gloo_has_let_go_of_its_tensors() -> None:
    """Its threads are told by their name; one that sleeps has nothing left to do."""
    named, works, sleeps = threading.Event(), threading.Event(), threading.Event()
    works.set()

    def thread() -> None:
        ctypes.CDLL(None).prctl(15, b"pt_gloo_runloop", 0, 0, 0)  # PR_SET_NAME
        named.set()
        sum(1 for _ in iter(works.is_set, False))
        sleeps.wait()

    gloo = threading.Thread(target=thread)
    gloo.start()
    named.wait()
    threading.Timer(0.5, works.clear).start()
    started = time.monotonic()
    let_gloo_rest()
    assert not works.is_set()
    assert time.monotonic() - started < 5
    sleeps.set()
    gloo.join()
