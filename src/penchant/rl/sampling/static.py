"""Sampling with a cache of a fixed size: every token's pass has one shape, and a GPU replays it.

Where a token is drawn at a time, a GPU waits for the host, which launches some hundred kernels for
each. A CUDA graph launches them all at once; it needs tensors that stay where they are, as large as
they are. So keys and values are written at a place that the device itself counts on, and attention
sees the whole room, of which a mask leaves out what is not written yet. On a CPU the same passes
run without a graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.functional import pad

from penchant.core.errors import ConfigError
from penchant.models.attention import layer_kinds
from penchant.rl.sampling.cache import RoomyLayer, is_plain
from penchant.rl.sampling.rows import Rows
from penchant.rl.sampling.sampler import CachedSampler

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("penchant")

# Positions of a whole cache are a multiple of this: kernels would copy another mask to align it.
ALIGNED = 16


@dataclass
class StaticSampler(CachedSampler):
    """Samples from a scorer's own model, with passes of one shape; on CUDA from a graph of them.

    Raises:
        ConfigError: at the first answers, where a layer does not keep all keys and values.
    """

    tells: ClassVar[bool] = False
    captures: bool = True
    """Whether graphs are captured: until one of them cannot be."""

    @property
    def _rows(self) -> Callable[..., Rows]:
        return partial(FixedRows, owner=self)

    @cached_property
    def _selects(self) -> bool:
        if refusal := self._refusal():
            raise ConfigError(f"generation: static {refusal}; set generation to cached")
        return True

    def _refusal(self) -> str:
        """Why the model's cache has no fixed size; empty where it has."""
        model: Any = self.scorer.causal_model
        kinds = set(layer_kinds(model.config.get_text_config())) - {"full_attention"}
        if kinds:
            return f"needs full attention in every layer, and this model has {', '.join(kinds)}"
        if model.config._attn_implementation != "sdpa":
            return (
                f"needs attention by sdpa, and this model has {model.config._attn_implementation}"
            )
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        if not is_plain(model(input_ids=token, use_cache=True).past_key_values):
            return "needs keys and values of every position, and this model keeps something else"
        return ""


class FixedLayer(RoomyLayer):
    """Keys and values with all the room for the answers to come.

    Args:
        layer: with keys and values of the prompts; rows, room: as of a `RoomyLayer`.
        at: `[1]`, where the next token's are written; whoever makes the passes moves it on.
    """

    def __init__(self, layer: Any, rows: Tensor, room: int, at: Tensor) -> None:
        self._at = at
        super().__init__(layer, rows, room)
        for buffer in self._buffers:  # what a mask leaves out must still be numbers
            buffer[:, :, self.get_seq_length() :] = 0.0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[R, heads, 1, dim]` at its place; returns everything, the room included."""
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self._at, states.to(buffer.dtype))
        keys, values = self._buffers
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep these rows."""
        self._buffers = tuple(buffer[indices] for buffer in self._buffers)


class FixedRows(Rows):
    """Answers side by side whose passes have one shape until rows leave the batch."""

    # Other rows are another shape, and a graph of their own.
    dropped_at_once = 0.5

    def __init__(self, *args: Any, owner: StaticSampler) -> None:
        self.owner = owner
        super().__init__(*args)
        self.mask = pad(self.mask, (0, self._room)).bool()[:, None, None]  # [R, 1, 1, width + room]
        self._tokens = self.positions.new_empty(0, 1)
        self._graph: Any = None
        self._warm = False

    def _make_room(self, rows: Tensor) -> None:
        width = self.cache.get_seq_length()
        self._at = torch.full((1,), width, device=rows.device)
        length = width + self.sampling.max_completion_length
        self._room = -(-length // ALIGNED) * ALIGNED - width
        self.cache.layers = [
            FixedLayer(one, rows, self._room, self._at) for one in self.cache.layers
        ]

    def _advance(self, tokens: Tensor) -> None:
        if len(tokens) != len(self._tokens):
            self._tokens = torch.empty_like(tokens.unsqueeze(1))  # [R, 1]
            self._graph, self._warm = None, False
        self._tokens.copy_(tokens.unsqueeze(1))
        if self._graph is None and self._warm and self.owner.captures:
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._warm_up()

    def _pass(self) -> None:
        """One token of every row, on tensors that stay where they are."""
        self.mask.index_fill_(3, self._at, True)
        self.positions.add_(1)
        out = self.model(
            input_ids=self._tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self._at.add_(1)
        self.logits = out.logits[:, -1]  # [R, V]

    def _warm_up(self) -> None:
        """A pass without a graph: the first one also makes what libraries make once a shape."""
        if self.mask.device.type != "cuda" or not self.owner.captures:
            self.owner.captures = False
            self._pass()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._pass()
        torch.cuda.current_stream().wait_stream(stream)
        self._warm = True

    def _captured(self) -> Any:
        """The pass as a graph, which nothing has run yet; None where it cannot be captured."""
        caches = torch.is_autocast_cache_enabled()
        try:
            graph = torch.cuda.CUDAGraph()
            # The graph would go on reading casts that autocast lets go of.
            torch.set_autocast_cache_enabled(False)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._pass()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.owner.captures = False
            logger.warning("answers are drawn without a CUDA graph: %s", error)
            return None
        finally:
            torch.set_autocast_cache_enabled(caches)
        return graph
