"""Whom each position of a packed row belongs to, for kernels that ask position by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from penchant.core.machine import to_device

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.segments import SegmentTable


class Places(NamedTuple):
    """Of each position of a packed row, `[T]` each."""

    group: Tensor
    segment: Tensor
    """Within the group: 0 is the prompt."""
    position: Tensor
    """In its own text; it restarts at the prompt's end."""


def places_of(table: SegmentTable, device: torch.device) -> Places:
    """Whom each position belongs to, on a device."""
    if ("places", device) not in table.kept:
        group_of = torch.full((table.length,), -1, dtype=torch.int32)
        segment_of = torch.full((table.length,), -1, dtype=torch.int32)
        for number, group in enumerate(table.groups):
            group_of[group.start : group.end] = number
            segment_of[group.start : group.prompt_end] = 0
            for i, (begin, end) in enumerate(group.completions, start=1):
                segment_of[begin:end] = i
        tensors = [group_of, segment_of, positions_of(table).int()]
        table.kept["places", device] = Places(*to_device(tensors, device))
    places: Places = table.kept["places", device]
    return places


def positions_of(table: SegmentTable) -> Tensor:
    """`[T]`, on the CPU: they restart at the prompt's end."""
    parts = []
    for group in table.groups:
        prompt_length = group.prompt_end - group.start
        parts.append(torch.arange(prompt_length))
        parts += [
            torch.arange(prompt_length, prompt_length + end - begin)
            for begin, end in group.completions
        ]
    return torch.cat(parts)


def retuned(module: Any, query: Tensor, table: SegmentTable) -> Tensor:
    """The queries of Llama 4's layers without rotary embeddings, scaled by their positions.

    The model has scaled them by their places in the row, which in a long row are others:
    `1 + attn_scale * log(1 + floor((place + 1) / floor_scale))`.
    """
    if module.use_rope or query.shape[2] < module.floor_scale:
        return query
    places = torch.arange(query.shape[2], device=query.device)
    scales = [
        1 + module.attn_scale * torch.log1p(torch.floor((at + 1.0) / module.floor_scale))
        for at in (places_of(table, query.device).position, places)
    ]
    return query * (scales[0] / scales[1])[:, None].to(query.dtype)
