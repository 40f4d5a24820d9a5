"""Micro-batches by tokens: nothing lost, nothing too long, few of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.core.team import Team
from penchant.data.batch import Group, pack, pack_repeated, pad
from penchant.data.budget import TokenBudget
from penchant.data.shared_prompts import share_prompts
from penchant.data.source import DatasetSource
from penchant.data.tokenise import TokenisedPair
from penchant.data.tokenised import TokenisedLabel

LAYOUTS = ("shared", "repeated", "padded")
LENGTHS = st.integers(1, 40)


def pairs(lengths):
    return [
        TokenisedPair([7] * p, [8] * c, [9] * r, f"row {i}") for i, (p, c, r) in enumerate(lengths)
    ]


def labels(lengths):
    """Many of one prompt, since there are few lengths of prompts."""
    return [TokenisedLabel([7] * (p % 3 + 1), [8] * c, True, f"row {i}")
            for i, (p, c, _) in enumerate(lengths)]  # fmt: skip


def groups_of(examples: Any) -> list[Group]:
    if isinstance(examples[0], TokenisedLabel):
        return share_prompts([(e.prompt, e.completion) for e in examples])[0]
    return [e.group() for e in examples]


def positions(examples, layout):
    """Counted on the tensors that the model gets."""
    groups = groups_of(examples)
    batch = {"shared": pack, "repeated": pack_repeated, "padded": lambda g: pad(g, 0)}[layout]
    return batch(groups).input_ids.numel()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [pairs, labels])
@given(
    lengths=st.lists(st.tuples(LENGTHS, LENGTHS, LENGTHS), min_size=1, max_size=16),
    limit=st.integers(1, 300),
)
def test_every_example_is_in_one_pass_and_only_one_that_is_alone_is_too_long(
    layout, make, lengths, limit
):
    examples = make(lengths)
    passes = TokenBudget(limit, groups_of, layout).divide(examples)
    rows = sorted(e.where for some in passes for e in some)
    assert rows == sorted(e.where for e in examples)
    for some in passes:
        assert len(some) == 1 or positions(some, layout) <= limit
    if layout != "padded" and make is pairs:  # first fit leaves at most one less than half full
        assert sum(positions(some, layout) <= limit // 2 for some in passes) <= 1


def test_longest_are_placed_first_and_each_pass_keeps_the_order_of_the_step():
    sizes = [(1, 1, n - 2) for n in (30, 50, 70, 50)]
    passes = TokenBudget(100, groups_of, "shared").divide(pairs(sizes))
    assert [[e.where for e in some] for some in passes] == [["row 0", "row 2"], ["row 1", "row 3"]]


def test_answers_to_one_prompt_share_it_and_are_parted_only_where_they_are_too_long():
    asked, other = [1] * 10, [2] * 10
    answers = [TokenisedLabel(asked if i % 2 else other, [3] * 5, True, str(i)) for i in range(6)]
    together = TokenBudget(25, groups_of, "shared").divide(answers)
    assert [[e.where for e in some] for some in together] == [["0", "2", "4"], ["1", "3", "5"]]
    parted = TokenBudget(20, groups_of, "shared").divide(answers)
    assert sorted(map(len, parted)) == [1, 1, 2, 2]


def source(examples, limit, **changes):
    keys = {"num_epochs": 1.0, "max_steps": None, "shuffle": True, "seed": 0}
    budget = TokenBudget(limit, groups_of, "shared")
    return DatasetSource(
        examples, micro_batch_size=2, accumulation=4, budget=budget, **{**keys, **changes}
    )


EXAMPLES = pairs([(n % 7 + 1, n % 5 + 1, n * n % 11 + 1) for n in range(21)])


def test_a_step_has_the_examples_that_it_has_without_a_budget():
    plain = DatasetSource(
        EXAMPLES, micro_batch_size=2, accumulation=4, num_epochs=1, max_steps=None, shuffle=True,
        seed=0,
    )  # fmt: skip
    for one, other in zip(plain.steps(), source(EXAMPLES, 40).steps(), strict=True):
        assert one.examples == other.examples
        assert len(other.micro_batches) < len(one.examples)


def test_processes_share_a_step_in_the_same_number_of_passes():
    shares = [list(source(EXAMPLES, 30, team=Team(rank, 3)).steps()) for rank in range(3)]
    for steps in zip(*shares, strict=True):
        assert len({len(step.micro_batches) for step in steps}) == 1
        seen = [e.where for s in steps for some, weight in s.micro_batches if weight for e in some]
        assert sorted(seen) == sorted(e.where for e in steps[0].examples)


def test_a_budget_that_fell_goes_on_after_resuming_unless_another_is_asked_for():
    before = source(EXAMPLES, 1000)
    (step,) = [next(iter(before.steps()))]
    largest = before.budget.lower([some for some, _ in step.micro_batches])
    assert largest == sum(e.group().num_tokens for e in step.examples)
    assert before.budget.limit == largest // 2
    state = before.state()
    for asked, expected in ((1000, largest // 2), (900, 900)):
        resumed = source(EXAMPLES, asked)
        resumed.load_state(*state)
        assert resumed.budget.limit == expected
    again = step.divided_again()
    assert len(again.micro_batches) >= math.ceil(largest / before.budget.limit)
    assert again.examples == step.examples
