"""Models that are never trained: their matrices are held in the dtype of the arithmetic.

Autocast rounds an fp32 matrix to half precision in every pass. The matrix of a frozen model can be
rounded once instead: the products are the same, for half the memory and without the casts.
Norms, biases, and embeddings stay as they are, because their results are not rounded; heads too,
because many are the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from penchant.models.load import DTYPES
from penchant.models.memory import is_quantised, own_part, weight_bytes
from penchant.models.size import layer_weights


def hold_frozen(model: nn.Module, frozen_dtype: str, precision: str) -> None:
    """Put the weights of a frozen model into the dtype that a run holds them in.

    Args:
        model: only used under the autocast of `precision` from now on.
        frozen_dtype: `auto`: matrices as the arithmetic, the rest as it is; `fp32`: everything.
        precision: of the arithmetic.
    """
    if is_quantised(model):  # its matrices are codes, and what else it has is in fp32
        return
    if frozen_dtype == "fp32":
        model.float()
        return
    for weight in _rounded(model, precision):
        weight.data = weight.data.to(DTYPES[precision])


def frozen_bytes(model: nn.Module, frozen_dtype: str, precision: str) -> int:
    """What a frozen copy of a model takes, or of its part here, as `hold_frozen` would hold it."""
    if is_quantised(model):
        return weight_bytes(model)
    if frozen_dtype == "fp32":
        return sum(4 * own_part(parameter).numel() for parameter in model.parameters())
    saved = 4 - DTYPES[precision].itemsize
    rounded = sum(own_part(weight).numel() for weight in _rounded(model, precision))
    return weight_bytes(model) - saved * rounded


def _rounded(model: Any, precision: str) -> list[nn.Parameter]:
    """The matrices that autocast would round in every pass."""
    if precision == "fp32":
        return []
    return [weight for weight in layer_weights(model) if weight.dtype == torch.float32]
