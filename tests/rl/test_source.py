"""The steps of a run that samples: how a mini-batch is split over passes."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from penchant.rl.rollout import Rollout
from penchant.rl.source import RolloutSource, Schedule


def source(size: int, *, evenly: bool) -> RolloutSource:
    schedule = Schedule(
        batch_size=16, num_generations=1, epochs=1, micro_batch_size=size, accumulation=2,
        num_steps=1, shuffle=False, seed=0, evenly=evenly,
    )  # fmt: skip
    unused: Any = None
    return RolloutSource([unused], unused, unused, unused, schedule, unused)


def rollouts(lengths: list[int]) -> list[Rollout]:
    return [
        Rollout([1] * (n // 2), [2] * (n - n // 2), f"row {i}", i, torch.zeros(0), torch.zeros(0))
        for i, n in enumerate(lengths)
    ]


def tokens(part: list[Rollout]) -> int:
    return sum(len(one.prompt) + len(one.completion) for one in part)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=16), st.integers(1, 6))
def test_passes_hold_every_answer_once_and_are_about_as_large(lengths, size):
    chosen = rollouts(lengths)
    passes = source(size, evenly=True)._passes(chosen)
    assert sorted(one.number for part in passes for one in part) == list(range(len(chosen)))
    assert len(passes) == -(-len(chosen) // size)
    assert all(0 < len(part) <= size for part in passes)
    sizes = [tokens(part) for part in passes]
    assert max(sizes) - min(sizes) <= max(lengths)


def test_the_longest_goes_with_the_shortest():
    passes = source(2, evenly=True)._passes(rollouts([10, 40, 20, 30]))
    assert [[one.number for one in part] for part in passes] == [[1, 0], [3, 2]]


def test_otherwise_answers_stay_in_their_order():
    passes = source(2, evenly=False)._passes(rollouts([10, 40, 20, 30, 5]))
    assert [[one.number for one in part] for part in passes] == [[0, 1], [2, 3], [4]]
