"""What is trained as a whole: a model without an adapter, and modules beside one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.models.architecture import outside_text

if TYPE_CHECKING:
    from torch import Tensor


def train_text(model: Any) -> Any:
    """The model with all weights trained but those that text does not pass."""
    model.requires_grad_(True)
    for part in outside_text(model):
        part.requires_grad_(False)
    return model


def train_in_fp32(module: nn.Module) -> None:
    """Give what is trained as a whole fp32 weights, which PEFT leaves as precise as the base."""
    dtype = next(module.parameters(recurse=False)).dtype
    module.to(torch.float32)
    if isinstance(module, nn.Embedding):
        module.register_forward_hook(lambda _, args, out: out.to(dtype))
    else:
        module.register_forward_pre_hook(_to_weight_dtype)


def _to_weight_dtype(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.to(module.weight.dtype) for arg in args)
