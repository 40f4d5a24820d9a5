"""A LoRA linear layer whose low-rank part rides on the base product: no extra full-size tensor.

PEFT computes `W x + (B A x) * scaling` as four operations with a full-size tensor each, forward
and backward. Here the low-rank product is added into the base product's output by one `addmm`.
The adapter's parameters, names and files are PEFT's own.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from penchant.core.errors import ModelError
from penchant.models.architecture import (
    is_pattern,
    linear_layers,
    outside_text,
    past_adapters,
    returns_more,
    text_backbone,
)
from penchant.models.linear import fast, is_low_rank, is_plain, product

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger("penchant")

OWN_PATTERN = r"The following (rank|alpha)_pattern keys .*: \['\.\*\\\\\.gate_up_proj'\]\."


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: str,
    target_parameters: str = "",
    settings: Mapping[str, Any] | None = None,
    task_type: str = "CAUSAL_LM",
    texts: Sequence[Sequence[int]] = (),
    device: torch.device | None = None,
) -> PeftModel:
    """Wrap `model` with a fresh LoRA adapter (Hu et al. 2021) that starts at no change.

    Args:
        model: its weights are frozen.
        r, alpha, dropout: rank, scale (`alpha / r`) and dropout in front of the adapter.
        target_modules: layer names, comma-separated, a pattern of whole names, or `all-linear` (all
            but the head); of the part that reads text alone, where a model has others.
        target_parameters: names of weights that no linear layer holds, as those of experts.
        settings: what else `peft.LoraConfig` takes.
        task_type: PEFT's; with `SEQ_CLS` the score head is trained and saved as a whole.
        texts: token ids of some records, for initial weights that are computed from passes.
        device: which makes such passes.

    Raises:
        ModelError: no layer or no parameter has one of the names, or PEFT refuses the settings.
    """
    settings = dict(settings or {})
    parameters: list[str] = []
    if target_parameters or settings.get("modules_to_save"):
        from penchant.models.targets import required_beside

        parameters = required_beside(model, target_parameters, settings.get("modules_to_save"))
    taken_out = bool(texts) and _taken_out(settings)
    # PEFT takes no word for all layers where it is told which of them to adapt.
    listed = taken_out or settings.get("layers_to_transform") is not None
    try:
        config = LoraConfig(
            r=r,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides; a float is as good
            lora_dropout=dropout,
            target_modules=_targets(model, target_modules, listed=listed),
            target_parameters=parameters or None,
            task_type=task_type,
            **settings,
        )
        if taken_out:
            from penchant.models.adapter_starts import look_at_records

            look_at_records(model, config, texts, device)
        adapted = _wrapped(model, config)
    except (ValueError, NotImplementedError, re.error) as error:
        also = f" with peft {settings}" if settings else ""
        raise ModelError(f"lora_target_modules {target_modules!r}{also}: {error}") from error
    if texts:
        from penchant.models.adapter_starts import start_from_records

        start_from_records(adapted, texts, device)
    fuse_lora(adapted)
    _tell_of_experts(config, parameters)
    _train_whole_in_fp32(adapted)
    return adapted


def _taken_out(settings: Mapping[str, Any]) -> bool:
    """Whether passes over records take the adapter's initial weights out of the base."""
    from penchant.core.adapters import TAKEN_OUT

    return str(settings.get("init_lora_weights", True)).startswith(TAKEN_OUT)


def _wrapped(model: PreTrainedModel, config: LoraConfig) -> Any:
    """PEFT's model, without what it warns of on account of what we ask it for."""
    with warnings.catch_warnings():
        # A pattern that PEFT writes itself, for experts that it then finds by another way.
        warnings.filterwarnings("ignore", OWN_PATTERN)
        warnings.filterwarnings("ignore", "lora with eva initialization used with low_cpu")
        return get_peft_model(model, config, autocast_adapter_dtype=True)


def _tell_of_experts(config: LoraConfig, asked: Sequence[str]) -> None:
    """Say which parameters PEFT adapts beside those that were asked for."""
    if more := set(config.target_parameters or ()).difference(asked):
        logger.info(
            "experts and routers get adapters too, as PEFT has it for this family: %s; linear "
            "layers of the experts' names get none",
            ", ".join(sorted(more)),
        )


def _train_whole_in_fp32(adapted: nn.Module) -> None:
    """Train in fp32 what is no adapter and is held in less, as layers that are saved whole."""
    for module in adapted.modules():
        if any(p.requires_grad and p.dtype.itemsize < 4 for p in module.parameters(recurse=False)):
            from penchant.models.whole_modules import train_in_fp32

            train_in_fp32(module)


def _targets(model: PreTrainedModel, target_modules: str, *, listed: bool) -> str | list[str]:
    """What PEFT is told to adapt: names, or a pattern that keeps to the part that reads text."""
    if is_pattern(target_modules):
        return target_modules
    every = target_modules == "all-linear"
    backbone = text_backbone(model)
    past = past_adapters(backbone)
    if every:
        names = sorted({name.rpartition(".")[2] for name, _ in linear_layers(backbone)} - past)
        if past:
            logger.info(
                "LoRA leaves out %s: Mamba's kernels read their weights", ", ".join(sorted(past))
            )
    else:
        from penchant.models.targets import required_layers

        names = required_layers(model, target_modules)
    if not any(True for _ in outside_text(model)) and not any(map(returns_more, model.modules())):
        return target_modules if every and not (listed or past) else names
    path = next(name for name, module in model.named_modules() if module is backbone)
    return rf"{re.escape(path)}\.(.+\.)?({'|'.join(map(re.escape, names))})"


def fuse_lora(model: nn.Module) -> None:
    """Let PEFT's LoRA layers on plain linear ones take the fused product.

    A quantised layer is a subclass of `nn.Linear` whose weight holds codes: PEFT's own layers for
    it, which let the layer multiply, stay.
    """
    for module in model.modules():
        if type(module) is Linear and is_plain(module.get_base_layer()):
            module.__class__ = FusedLoraLinear


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
        if not fast() or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or not is_low_rank(self, name):
            return None
        dropout = self.lora_dropout[name]
        active_dropout = self.training and getattr(dropout, "p", 0.0) > 0
        trained_base = any(p.requires_grad for p in self.get_base_layer().parameters())
        return None if active_dropout or trained_base else name


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
        # No view, so that what follows may add to it in place, as Llama 4's experts do.
        return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], -1])

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
