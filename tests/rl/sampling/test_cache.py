"""The cache with room: the same keys and values as transformers' own, without moving them."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3TextConfig
from transformers.cache_utils import DynamicCache, StaticCache

from penchant.rl.sampling.cache import RoomyLayer, is_plain, make_room


def filled(rows: int, length: int) -> DynamicCache:
    cache = DynamicCache()
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        cache.update(*torch.randn(2, rows, 3, length, 4, generator=generator), layer)
    return cache


def test_it_holds_what_the_plain_cache_holds_through_repeats_growth_and_drops():
    plain, roomy = filled(2, 5), filled(2, 5)
    rows = torch.tensor([0, 0, 1])
    plain.batch_select_indices(rows)
    make_room(roomy, rows, 3)
    for step in range(3):
        if step == 1:
            for cache in (plain, roomy):
                cache.batch_select_indices(torch.tensor([2, 0]))
        keys, values = torch.randn(2, len(plain.layers[0].keys), 3, 1, 4)
        for layer in range(2):
            theirs, own = (cache.update(keys, values, layer) for cache in (plain, roomy))
            for a, b in zip(theirs, own, strict=True):
                assert torch.equal(a, b)
        assert roomy.get_seq_length() == plain.get_seq_length() == 6 + step


def test_growing_does_not_move_what_is_there():
    cache = filled(1, 5)
    make_room(cache, torch.tensor([0]), 2)
    before = cache.layers[0].keys.data_ptr()
    for _ in range(2):
        cache.update(*torch.randn(2, 1, 3, 1, 4), 0)
    assert cache.layers[0].keys.data_ptr() == before
    with pytest.raises(ValueError, match="room for 7 tokens, not 8"):
        cache.update(*torch.randn(2, 1, 3, 1, 4), 0)


def test_a_cache_of_another_kind_keeps_its_own_way():
    config = Gemma3TextConfig(num_hidden_layers=2, sliding_window=4, head_dim=4)
    cache = DynamicCache(config=config)
    for layer in range(2):
        cache.update(*torch.randn(2, 2, 4, 5, 4), layer)
    assert not is_plain(cache)
    assert not is_plain(StaticCache(config, max_cache_len=8))
    make_room(cache, torch.tensor([1, 1, 0]), 8)
    assert not any(isinstance(layer, RoomyLayer) for layer in cache.layers)
    assert len(cache.layers[0].keys) == 3
