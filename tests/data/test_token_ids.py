"""Token ids in one array: they read as the lists that they stand for."""

from __future__ import annotations

import pickle
import sys
from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penchant.data.batch import Turns
from penchant.data.token_ids import TokenIds, TokenStore

IDS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=12), min_size=1, max_size=6)


@given(IDS)
def test_ids_of_many_records_read_as_the_lists_that_they_are(records: list[list[int]]) -> None:
    store = TokenStore()
    kept = [store.keep(ids) for ids in records]
    assert kept == records and [*map(list, kept)] == records
    for one, ids in zip(kept, records, strict=True):
        assert len(one) == len(ids) and one[:2] == ids[:2] and bool(one) == bool(ids)
        assert torch.equal(torch.tensor(one), torch.tensor(ids))
        assert (one[-1] == ids[-1]) if ids else True
        assert pickle.loads(pickle.dumps(one)) == ids
        assert hash(one) == hash(tuple(ids))


def test_place_outside_of_a_record_is_none_of_another_record() -> None:
    store = TokenStore()
    first, _ = store.keep([1, 2]), store.keep([3])
    with pytest.raises(IndexError):
        first[2]


def test_turns_keep_which_tokens_are_trained_on() -> None:
    kept = TokenStore().keep(Turns([1, 2, 3], ((0, 1), (2, 3))))
    assert kept == Turns([1, 2, 3], ((0, 1), (2, 3)))
    assert isinstance(kept, Turns) and isinstance(kept.ids, TokenIds)


def test_a_record_takes_four_bytes_a_token_and_a_small_object() -> None:
    held = array("i", range(1000))
    ids = TokenIds(held, 0, 1000)
    assert held.itemsize == 4 and sys.getsizeof(ids) <= 72
