"""The shares of the processes of a run: all of the work, each piece once, in equal rounds."""

from __future__ import annotations

import pytest

from penchant.core.team import ALONE, Team


@pytest.mark.parametrize("num_items", [0, 1, 3, 7, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rounds_are_equally_many_and_hold_every_item_once(num_items: int, size: int) -> None:
    items = list(range(num_items))
    shares = [Team(rank, size).rounds(items) for rank in range(size)]
    assert {len(share) for share in shares} == {-(-num_items // size)}
    counted = [item for share in shares for item, counts in share if counts]
    assert sorted(counted) == items
    for rank, share in enumerate(shares):
        assert [item for item, counts in share if counts] == Team(rank, size).share(items)


def test_one_process_knows_what_it_knows() -> None:
    assert ALONE.leads
    assert ALONE.gather("a") == ["a"]
    assert ALONE.together([1, 2, 3]) == [1, 2, 3]
    assert ALONE.agree("a") == "a"
