"""A LoRA linear layer whose low-rank part rides on the base product: no extra full-size tensor.

PEFT computes `W x + (B A x) * scaling` as four operations with a full-size tensor each, forward
and backward. Here the low-rank product is added into the base product's output by one `addmm`.
The adapter's parameters, names and files are PEFT's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from penchant.core.errors import ModelError
from penchant.models.linear import product

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: str,
    task_type: str = "CAUSAL_LM",
) -> PeftModel:
    """Wrap `model` with a fresh LoRA adapter (Hu et al. 2021) that starts at no change.

    Args:
        model: its weights are frozen.
        r, alpha, dropout: rank, scale (`alpha / r`) and dropout in front of the adapter.
        target_modules: layer names, comma-separated, or `all-linear` (all but the head).
        task_type: PEFT's; with `SEQ_CLS` the score head is trained and saved as a whole.

    Raises:
        ModelError: no layer has one of the names.
    """
    every = target_modules == "all-linear"
    names = [name.strip() for name in target_modules.split(",") if name.strip()]
    if not every:
        _require_layers(model, names)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides; a float is as good
        lora_dropout=dropout,
        target_modules=target_modules if every else names,
        task_type=task_type,
    )
    config._register_custom_module({nn.Linear: FusedLoraLinear})  # PEFT's hook for own layers
    try:
        adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise ModelError(f"lora_target_modules {target_modules!r}: {error}") from error
    for module in adapted.modules():
        if any(p.requires_grad and p.dtype.itemsize < 4 for p in module.parameters(recurse=False)):
            # A head that is trained as a whole, which PEFT leaves as precise as the base.
            module.to(torch.float32).register_forward_pre_hook(_to_weight_dtype)
    return adapted


def _to_weight_dtype(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.to(module.weight.dtype) for arg in args)


def _require_layers(model: PreTrainedModel, names: list[str]) -> None:
    """PEFT passes over a name that fits no layer as long as another one fits."""
    layers = [f".{name}" for name, _ in model.named_modules()]
    unknown = [n for n in names if not any(layer.endswith(f".{n}") for layer in layers)]
    if unknown or not names:
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        raise ModelError(
            f"lora_target_modules: no layer is called {', '.join(unknown) or 'nothing'}; "
            f"this model has {', '.join(sorted(linear))}"
        )


class FusedLoraLinear(Linear):
    """PEFT's LoRA linear layer, quicker where one plain adapter without dropout is active."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer to `[..., in_features]`."""
        name = self._fusible_adapter() if not args and not kwargs else None
        if name is None:
            return super().forward(x, *args, **kwargs)
        base = self.get_base_layer()
        return _LoraProduct.apply(
            x,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )

    def _fusible_adapter(self) -> str | None:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant:
            return None
        dropout = self.lora_dropout[name]
        active_dropout = self.training and getattr(dropout, "p", 0.0) > 0
        trained_base = self.get_base_layer().weight.requires_grad
        biased = self.lora_A[name].bias is not None or self.lora_B[name].bias is not None
        return None if active_dropout or trained_base or biased else name


class _LoraProduct(torch.autograd.Function):
    """`x W^T + bias + scaling (x A^T) B^T` with a frozen W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)  # [T, in]
        low = flat @ A.t().to(dtype)  # [T, r]
        out = product(flat, W.to(dtype), None if bias is None else bias.to(dtype))
        out.addmm_(low, B.t().to(dtype), alpha=scaling)
        ctx.scaling, ctx.shape, ctx.input_dtype = scaling, x.shape, x.dtype
        ctx.save_for_backward(flat, W, A, B, low)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, W, A, B, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # [T, out]
        grad_low = (grad @ B.to(grad.dtype)).mul_(ctx.scaling)  # [T, r]
        grad_A = (grad_low.t() @ flat).to(A.dtype)
        grad_B = (grad.t() @ low).mul_(ctx.scaling).to(B.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, W.to(grad.dtype).t())
            grad_x.addmm_(grad_low, A.to(grad.dtype))
            grad_x = grad_x.to(ctx.input_dtype).view(ctx.shape)
        return grad_x, None, None, grad_A, grad_B, None
