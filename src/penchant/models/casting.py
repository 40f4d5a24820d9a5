"""Weights rounded once for many passes, where autocast would round them at each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from penchant.models.linear import is_plain

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Hold the weights of linear layers in autocast's dtype for a while, where that is on.

    Every product has the factors that it would have had. An adapter's matrices stay beside the
    weights that they change: added to weights of half precision, most of a small change would be
    rounded away, and the answers would not be those of the policy that is scored. Afterwards every
    weight is the tensor that it was.

    Args:
        model: of transformers, with or without an adapter; nothing of it is trained in here.
    """
    device = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        yield
        return
    dtype = torch.get_autocast_dtype(device)
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for parameter in _only_multiplied(model):
            if parameter.dtype == torch.float32:
                before.append((parameter, parameter.data))
                parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, own in before:
            parameter.data = own


def _only_multiplied(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of linear layers that no layer of another kind reads too, as tied embeddings."""
    layers = [module for module in model.modules() if is_plain(module)]
    multiplied = {id(p): p for layer in layers for p in layer.parameters(recurse=False)}
    linear = set(map(id, layers))
    for module in model.modules():
        if id(module) not in linear:
            for parameter in module.parameters(recurse=False):
                multiplied.pop(id(parameter), None)
    return list(multiplied.values())
