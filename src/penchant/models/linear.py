"""Products with a model's weights: on x86 in fp32, in the way that is fastest on the machine.

torch multiplies fp32 matrices with MKL, half-precision ones with oneDNN. In fp32 either may be the
faster, and so may MKL with the factors exchanged: `products.py` measures them on the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from penchant.models.products import Product

# oneDNN compiles a kernel for every shape it meets, in a millisecond: not for small matrices.
WORTHWHILE = 1 << 16
# Compiled kernels that it keeps, a megabyte or two each: a batch's shapes. More are no faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "24")
# Types of weights that are numbers; subclasses of other libraries may hold codes.
PLAIN_TENSORS: tuple[type, ...] = (Tensor, nn.Parameter)
# What the fast layers multiply; FP8 and integers are codes that only their own layers can read.
MULTIPLIED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_switch = {"fast": True}


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a linear one whose weights are numbers, in no quantised subclass."""
    if type(layer) not in (nn.Linear, FastLinear):
        return False
    weight: Any = layer.weight
    return type(weight) in PLAIN_TENSORS and weight.dtype in MULTIPLIED


def is_low_rank(layer: Any, adapter: str) -> bool:
    """Whether an adapter of a LoRA layer is a product of two matrices: with DoRA or biases not."""
    plain = adapter not in layer.lora_variant
    return plain and layer.lora_A[adapter].bias is None and layer.lora_B[adapter].bias is None


def fast() -> bool:
    """Whether the fast layers take their own way, as they do but inside of `plain_layers`."""
    return _switch["fast"]


@contextmanager
def plain_layers() -> Iterator[None]:
    """Let every layer compute as torch, PEFT or bitsandbytes wrote it: to check the fast ones."""
    before, _switch["fast"] = _switch["fast"], False
    try:
        yield
    finally:
        _switch["fast"] = before


def use_fast_linear(model: nn.Module) -> None:
    """Let every plain linear layer of a model take the faster product; nothing else changes."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear


class FastLinear(nn.Linear):
    """`nn.Linear`, quicker on the CPU: the same parameters, names and files."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `[..., in_features]`."""
        if _faster_way(x, self.weight) is None:
            return super().forward(x)
        if not torch.is_grad_enabled():  # a token's sampling feels what autograd's detour costs
            return product(x, self.weight, self.bias)
        return _Linear.apply(x, self.weight, self.bias)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, vocabulary: bool = False
) -> Tensor:
    """`x weight^T + bias`, `[..., in]` and `[out, in]`, outside of autograd.

    A transposed view as `weight` multiplies from the other side; it is not copied. Products with
    a head's weights, the `vocabulary`, are wider than others, and are measured apart.
    """
    way = _faster_way(x, weight, vocabulary=vocabulary) or functional.linear
    return way(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, weight.t())
        if ctx.needs_input_grad[1]:  # tall and thin: MKL is as fast
            grad_weight = grad.flatten(0, -2).t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_x, grad_weight, grad_bias


def _faster_way(x: Tensor, weight: Tensor, *, vocabulary: bool = False) -> Product | None:
    """What multiplies faster than torch's own linear layer; None where nothing does."""
    worthwhile = (
        fast()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and weight.numel() >= WORTHWHILE
        and x.numel() > 0
        and type(weight) in PLAIN_TENSORS  # not quantised
        and not torch.is_autocast_enabled("cpu")
    )
    if not worthwhile:
        return None
    from penchant.models.products import faster_way

    return faster_way(x.numel() // x.shape[-1], vocabulary=vocabulary)


def chosen_products() -> dict[str, str]:
    """The way for each kind of product, for the summary; empty where nothing was chosen."""
    # Imported only where a matrix is large enough to ask which way is faster.
    products = sys.modules.get("penchant.models.products")
    return {} if products is None else products.measured_products()
