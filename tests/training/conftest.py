"""Runs in several processes, started as a user starts them, or forked where seconds count."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import PartialState

import penchant


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that finds a port that nobody uses."""
    return _free_port


@pytest.fixture
def fork() -> Callable[..., None]:
    """Return a function that carries a run out in processes that need not import torch.

    Another `command` is a function of penchant; with `fails` each process must end with an error.
    """
    context = multiprocessing.get_context("fork")

    def work(rank: int, size: int, nodes: int, port: int, command: str, *given: Any) -> None:
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        local = size // nodes
        ranks = {"RANK": rank, "LOCAL_RANK": rank % local, "WORLD_SIZE": size}
        ranks["LOCAL_WORLD_SIZE"] = local
        os.environ |= here | {name: str(number) for name, number in ranks.items()}
        torch.set_num_threads(1)  # the threads of the process that was forked are not there
        PartialState._reset_state()
        method, keys = given
        getattr(penchant, command)(method, **keys)

    def carry_out(
        method: str,
        keys: dict[str, Any],
        size: int = 2,
        *,
        nodes: int = 1,
        command: str = "train",
        fails: bool = False,
    ) -> None:
        given = size, nodes, _free_port(), command, method, keys
        team = [context.Process(target=work, args=(rank, *given)) for rank in range(size)]
        for one in team:
            one.start()
        for one in team:
            one.join(60)
            one.kill()
            one.join()
        assert [one.exitcode for one in team] == [int(fails)] * size

    return carry_out


@pytest.fixture
def start() -> Callable[..., Any]:
    """Return a function that starts a run in two processes, or as the launcher's options say."""

    def begin(method: str, keys: dict[str, Any], *options: str) -> Any:
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        launch = options or ("--nproc-per-node", "2", "--master-port", str(_free_port()))
        run = ["-m", "penchant", "train", method, *words]
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *launch, *run],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )

    return begin


@pytest.fixture
def launch(start: Callable[..., Any]) -> Callable[..., str]:
    """Return a function that carries a run out in several processes; it tells what was shown."""

    def carry_out(num_processes: int, method: str, keys: dict[str, Any]) -> str:
        ports = ("--nproc-per-node", str(num_processes), "--master-port", str(_free_port()))
        process = start(method, keys, *ports)
        try:
            _, told = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its own processes; a kill would leave them
            process.wait(timeout=60)
            raise
        assert process.returncode == 0, told
        return str(told)

    return carry_out


@pytest.fixture
def few_keys(tiny_keys: dict[str, Any]) -> dict[str, Any]:
    """Return a run of 4 steps of 8 pairs in two processes."""
    steps = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_steps": 4}
    return {**tiny_keys, **steps, "adam_epsilon": 1e-4}
