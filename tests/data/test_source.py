"""The order of examples: reproducible, resumable, and shared out fairly."""

from __future__ import annotations

import math

import pytest

from penchant.core.team import Team
from penchant.data.source import DatasetSource

DEFAULTS = {
    "micro_batch_size": 2,
    "accumulation": 2,
    "num_epochs": 1.0,
    "max_steps": None,
    "shuffle": True,
    "seed": 0,
}


def source(num_examples, **changes):
    return DatasetSource(list(range(num_examples)), **{**DEFAULTS, **changes})


def visited(step):
    """The examples that count in a step of one process."""
    return [e for examples, weight in step.micro_batches if weight for e in examples]


def test_an_epoch_visits_every_example_once():
    seen = [e for step in source(23).steps() for e in visited(step)]
    assert sorted(seen) == list(range(23))
    assert seen != sorted(seen)


def test_shuffle_off_keeps_the_order_of_the_file_in_every_epoch():
    seen = [e for step in source(7, shuffle=False, num_epochs=2).steps() for e in visited(step)]
    assert seen == [*range(7), *range(7)]


def test_order_depends_on_the_seed_and_the_epoch_and_not_on_the_batch_size():
    first = [e for step in source(24).steps() for e in visited(step)]
    other_batches = source(24, micro_batch_size=3, accumulation=1)
    assert [e for step in other_batches.steps() for e in visited(step)] == first
    assert [e for step in source(24, seed=1).steps() for e in visited(step)] != first
    second_epoch = [e for step in source(24, num_epochs=2).steps(6) for e in visited(step)]
    assert sorted(second_epoch) == list(range(24))
    assert second_epoch != first


@pytest.mark.parametrize("done", [0, 1, 5, 6, 7, 14])
def test_a_resumed_run_sees_the_steps_that_an_uninterrupted_one_would(done):
    whole = list(source(22, num_epochs=2.5).steps())
    assert list(source(22, num_epochs=2.5).steps(done)) == whole[done:]


def test_a_tail_that_does_not_fill_a_step_is_trained_on_and_divided_by_its_own_size():
    last = list(source(11, shuffle=False).steps())[-1]
    assert last.micro_batches == [([8, 9], 1.0), ([10], 1.0)]
    assert last.num_examples == 3


def test_epochs_are_counted_by_examples_even_where_steps_are_uneven():
    epochs = [step.epoch for step in source(10, num_epochs=2).steps()]
    assert epochs == pytest.approx([0.4, 0.8, 1.0, 1.4, 1.8, 2.0])


@pytest.mark.parametrize(
    ("num_epochs", "max_steps", "expected"),
    [(1, None, 3), (2, None, 6), (0.5, None, 2), (0.01, None, 1), (1, 7, 7), (5, 1, 1)],
)
def test_epochs_or_max_steps_set_the_number_of_steps(num_epochs, max_steps, expected):
    made = source(10, num_epochs=num_epochs, max_steps=max_steps)
    steps = list(made.steps())
    assert made.num_steps == len(steps) == expected
    assert [step.step for step in steps] == list(range(1, expected + 1))


def test_accumulation_splits_a_step_without_changing_its_examples():
    whole = [visited(step) for step in source(32, micro_batch_size=8, accumulation=1).steps()]
    split = [visited(step) for step in source(32, micro_batch_size=1, accumulation=8).steps()]
    assert split == whole


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_examples", [1, 2, 5, 11, 24, 25])
def test_processes_share_each_step_without_overlap_and_run_equally_many_passes(
    num_examples, world_size
):
    ranks = [
        list(source(num_examples, team=Team(rank, world_size)).steps())
        for rank in range(world_size)
    ]
    alone = list(source(num_examples, accumulation=2 * world_size).steps())
    assert {len(steps) for steps in ranks} == {len(alone)}
    for whole, *shares in zip(alone, *ranks, strict=True):
        counted = [example for share in shares for example in visited(share)]
        assert sorted(counted) == sorted(visited(whole))
        assert {share.num_examples for share in shares} == {whole.num_examples} == {len(counted)}
        passes = {len(share.micro_batches) for share in shares}
        assert passes == {math.ceil(math.ceil(len(counted) / world_size) / 2)}
        assert all(examples for share in shares for examples, _ in share.micro_batches)


def test_a_process_with_nothing_left_runs_a_stand_in_that_weighs_nothing():
    steps = [next(source(1, team=Team(rank, 2)).steps()) for rank in (0, 1)]
    assert steps[0].micro_batches == [([0], 1.0)]
    assert steps[1].micro_batches == [([0], 0.0)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_process_knows_all_examples_of_a_step_in_order(world_size):
    alone = list(source(23, accumulation=2 * world_size, num_epochs=2).steps())
    for rank in range(world_size):
        steps = list(source(23, num_epochs=2, team=Team(rank, world_size)).steps())
        assert [step.examples for step in steps] == [step.examples for step in alone]
        for step in steps:
            assert step.num_examples == len(step.examples)
            assert visited(step) == step.examples[rank::world_size]


@pytest.mark.parametrize(
    ("num_epochs", "max_steps"), [(1, None), (2.5, None), (0.5, None), (3, 2), (1, 6), (1, 7)]
)
def test_what_a_run_will_visit_is_known_before(num_epochs, max_steps):
    made = source(22, num_epochs=num_epochs, max_steps=max_steps)
    met = {e for step in made.steps() for e in visited(step)}
    assert sorted(made.visited()) == sorted(met)


BLOCKS = [[0, 4], [1], [2, 7], [3], [5, 6], [8], [9, 10]]


def test_blocks_stay_together_when_the_order_is_shuffled():
    steps = list(source(11, blocks=BLOCKS, num_epochs=3).steps())
    orders = [[e for step in steps[i : i + 3] for e in visited(step)] for i in (0, 3, 6)]
    for order in orders:
        assert sorted(order) == list(range(11))
        for block in BLOCKS:
            first = order.index(block[0])
            assert order[first : first + len(block)] == block
    assert orders[0] != orders[1] != orders[2]


def test_resuming_keeps_the_order_of_blocks():
    whole = list(source(11, blocks=BLOCKS, num_epochs=3).steps())
    assert list(source(11, blocks=BLOCKS, num_epochs=3).steps(4)) == whole[4:]
