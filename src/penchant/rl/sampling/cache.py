"""A key-value cache with room for the answers to come: what is in it does not move a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from torch import Tensor


def is_plain(cache: Any) -> bool:
    """Whether a cache is keys and values of every position, which can be moved."""
    return type(cache) is DynamicCache and all(
        type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers
    )


def can_select(model: Any) -> bool:
    """Whether rows of a model's cache can be repeated and dropped: keys and values everywhere.

    Recurrent and convolution layers carry a state of another form, and some models keep theirs
    to themselves. One token is read to see what the model returns.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    cache = getattr(model(input_ids=token, use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(
        hasattr(layer, "batch_select_indices") and not hasattr(layer, "conv_states")
        for layer in layers
    )


def make_room(cache: Any, rows: Tensor, num_tokens: int) -> None:
    """Repeat or drop rows of a cache, which then has room for so many tokens more.

    Args:
        cache: of transformers; one that is not plain keeps its own way of growing.
        rows: `[R]`, of its rows: which to keep, in the order wanted, each as often as wanted.
        num_tokens: that will be added to every row.
    """
    if is_plain(cache):
        cache.layers = [RoomyLayer(layer, rows, num_tokens) for layer in cache.layers]
    else:
        cache.batch_select_indices(rows)


class RoomyLayer(DynamicLayer):
    """Keys and values at the beginning of buffers that are longer.

    `DynamicLayer` copies all keys and values for each token that it adds.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: Any, rows: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._place(layer.keys, layer.values, rows, room)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[R, heads, T, dim]` after what is there; returns all of it."""
        start = self.get_seq_length()
        end, room = start + key_states.shape[-2], self._buffers[0].shape[-2]
        if end > room:
            raise ValueError(f"the cache has room for {room} tokens, not {end}")
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep these rows."""
        room = self._buffers[0].shape[-2] - self.get_seq_length()
        self._place(self.keys, self.values, indices, room)

    def _place(self, keys: Tensor, values: Tensor, rows: Tensor, room: int) -> None:
        length = keys.shape[-2]
        self._buffers = tuple(
            states.new_empty(len(rows), states.shape[1], length + room, states.shape[3])
            for states in (keys, values)
        )
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, :length] = states[rows]
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)
