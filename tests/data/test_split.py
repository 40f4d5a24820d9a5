"""Splitting keeps evaluation prompts unseen, near the fraction asked for, and repeatable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penchant.data.faults import count_leaks
from penchant.data.read import read_pairs
from penchant.data.records import Label, Pair
from penchant.data.split import split_by_prompt


def pairs_of(*sizes):
    """Return pairs over one prompt per size, their prompts interleaved."""
    pairs = [
        Pair(f"prompt {prompt}", f"good {turn}", f"bad {turn}", f"f:{prompt}.{turn}")
        for turn in range(max(sizes))
        for prompt, size in enumerate(sizes)
        if turn < size
    ]
    assert len(pairs) == sum(sizes)
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_is_on_both_sides_and_no_pair_is_lost(seed):
    pairs = pairs_of(5, 1, 3, 2, 7, 1, 1, 4)
    train, evaluation = split_by_prompt(pairs, 0.7, seed)
    assert count_leaks(train, evaluation).num == 0
    assert sorted(p.where for p in train + evaluation) == sorted(p.where for p in pairs)


def test_each_side_keeps_the_order_of_the_file():
    pairs = pairs_of(5, 1, 3, 2)
    for side in split_by_prompt(pairs, 0.5, seed=1):
        places = [pairs.index(pair) for pair in side]
        assert places == sorted(places)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_fraction_counts_pairs_and_is_met_where_prompts_allow(fraction, seed):
    train, _ = split_by_prompt(pairs_of(*[1] * 10, *[3] * 10), fraction, seed)
    assert len(train) == fraction * 40


@pytest.mark.parametrize("seed", range(5))
def test_one_large_prompt_goes_to_the_side_it_suits(seed):
    train, evaluation = split_by_prompt(pairs_of(9, 1), 0.9, seed)
    assert (len(train), len(evaluation)) == (9, 1)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_side_is_empty_at_an_extreme_fraction(fraction):
    train, evaluation = split_by_prompt(pairs_of(2, 2, 2), fraction, seed=0)
    assert {len(train), len(evaluation)} == {2, 4}


def test_another_seed_gives_another_split():
    pairs = pairs_of(*[1] * 30)
    assert split_by_prompt(pairs, 0.5, seed=0) != split_by_prompt(pairs, 0.5, seed=1)


def test_split_is_the_same_in_processes_with_different_string_hashes():
    code = (
        "from penchant.data.records import Pair\n"
        "from penchant.data.split import split_by_prompt\n"
        "pairs = [Pair(f'p{n}', 'x', 'y', str(n)) for n in range(50)]\n"
        "print([p.where for p in split_by_prompt(pairs, 0.5, 3)[0]])\n"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range_is_refused_with_its_value(fraction):
    with pytest.raises(ValueError, match=f"got {fraction}"):
        split_by_prompt(pairs_of(1, 1), fraction, seed=0)


@pytest.mark.parametrize("pairs", [[], pairs_of(4)], ids=["none", "one prompt"])
def test_fewer_than_two_prompts_cannot_be_split(pairs):
    with pytest.raises(ValueError, match="at least two are needed"):
        split_by_prompt(pairs, 0.5, seed=0)


def test_leaks_are_counted_in_records_not_in_prompts():
    assert count_leaks(pairs_of(3, 2, 4), pairs_of(1, 1)).num == 5


def test_labels_are_split_by_prompt_like_pairs():
    labels = [Label(f"prompt {n // 4}", f"answer {n}", n % 2 == 0, f"f:{n}") for n in range(40)]
    train, evaluation = split_by_prompt(labels, 0.5, seed=0)
    assert len(train) == len(evaluation) == 20
    assert count_leaks(train, evaluation).num == 0
    assert count_leaks(labels, train).num == 20


def test_pandalm_repeats_prompts_yet_splits_without_leaking(shared):
    pairs = read_pairs(shared / "data" / "pandalm.jsonl").records
    train, evaluation = split_by_prompt(pairs, 0.9, seed=0)
    assert count_leaks(train, evaluation).num == 0
    assert abs(len(train) - 0.9 * len(pairs)) <= 1
