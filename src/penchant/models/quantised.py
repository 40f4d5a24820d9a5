"""Frozen bases whose matrices are codes: making them, preparing them, and numbers again.

LoRA on top of 4-bit codes is QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314). A
model is quantised by bitsandbytes while it is loaded, or comes quantised as its checkpoint says.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from penchant.core.commands import install
from penchant.core.errors import ModelError

# What transformers needs to load and multiply the codes of a checkpoint: importable name, package.
PACKAGES = {
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"),),
    "gptq": (("optimum", "optimum"), ("gptqmodel", "gptqmodel")),
    "awq": (("gptqmodel", "gptqmodel"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "auto-round": (("auto_round", "auto-round"),),
    "quanto": (("optimum", "optimum-quanto"),),
    "torchao": (("torchao", "torchao"),),
    "aqlm": (("aqlm", "aqlm"),),
    "eetq": (("kernels", "kernels"),),
    "hqq": (("hqq", "hqq"),),
    "vptq": (("vptq", "vptq"),),
}
# Methods whose layers PEFT leaves in their own dtype, as `prepare_model_for_kbit_training` does.
OWN_DTYPE = ("gptq", "aqlm", "eetq", "hqq", "torchao")


@dataclass(frozen=True)
class Quantization:
    """How bitsandbytes is to quantise a model while it is loaded.

    Attributes:
        bits: 4 (NF4 with double quantisation) or 8 (LLM.int8).
        compute_dtype: of the products of 4-bit layers.
        device: where the weights go.
        settings: a configuration of transformers in place of `bits` and `compute_dtype`.
    """

    bits: int = 4
    compute_dtype: torch.dtype = torch.float32
    device: torch.device | None = None
    settings: Any = None

    def arguments(self) -> dict[str, Any]:
        """For `from_pretrained`."""
        from transformers import BitsAndBytesConfig

        settings = self.settings or BitsAndBytesConfig(
            load_in_4bit=self.bits == 4,
            load_in_8bit=self.bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.compute_dtype,
        )
        return {"quantization_config": settings, "device_map": {"": self.device or "cpu"}}


def saved_method(settings: Any) -> str | None:
    """The method by which a saved configuration says that its weights are quantised."""
    found = getattr(settings, "quantization_config", None)
    if found is None:
        return None
    kind = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    if kind is None:  # of bitsandbytes before it wrote its name
        return "bitsandbytes"
    return str(getattr(kind, "value", kind))


def method_of(model: Any) -> str | None:
    """The method by which the weights of a loaded model are quantised."""
    method = getattr(model, "quantization_method", None)
    return None if method is None else str(getattr(method, "value", method))


def require_packages(method: str, name: str) -> None:
    """Refuse a quantisation whose layers cannot be built here.

    Args:
        method: as transformers calls it; name: of the model, or what asks for it.

    Raises:
        ModelError: a package is not installed.
    """
    for module, package in PACKAGES.get(method, ()):
        if importlib.util.find_spec(module) is None:
            how = install("quantization") if package == "bitsandbytes" else f"pip install {package}"
            raise ModelError(
                f"{name} is quantised by {method}, and {package} is not installed: {how}"
            )


def prepare_quantised(model: Any, compute_dtype: torch.dtype | None = None) -> None:
    """Freeze a quantised model, with norms, embeddings and head in fp32 where they are numbers.

    As PEFT's `prepare_model_for_kbit_training` does; checkpointing without re-entry needs no more.

    Args:
        model: as it was loaded.
        compute_dtype: of the arithmetic; None: as it was loaded to compute.
    """
    model.requires_grad_(False)
    if method_of(model) not in OWN_DTYPE:
        for parameter in model.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16) and not _is_code(parameter):
                parameter.data = parameter.data.to(torch.float32)
    compute_in(model, compute_dtype)


def compute_in(model: Any, compute_dtype: torch.dtype | None) -> None:
    """Let quantised layers compute in a dtype, if one is given, alike in training and out of it.

    On a CPU bitsandbytes' own do not: once a layer is in evaluation, it rounds activations to 8
    bits, or packs 4-bit weights for products in bf16.
    """
    if method_of(model) != "bitsandbytes":
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            if compute_dtype is not None:
                module.compute_dtype, module.compute_type_is_set = compute_dtype, True
            module.support_avx512bf16_for_cpu = False
        elif type(module) is Linear8bitLt and model.device.type == "cpu":
            module.__class__ = _steady_layer()  # type: ignore[assignment]


def _is_code(parameter: nn.Parameter) -> bool:
    """4-bit codes may be stored as halves."""
    return getattr(parameter, "quant_state", None) is not None


@cache
def _steady_layer() -> type[nn.Module]:
    """bitsandbytes' 8-bit layer as it computes in training, whatever the mode."""
    from bitsandbytes.nn.modules import Linear8bitLt

    class SteadyLinear8bit(Linear8bitLt):
        """Multiplies with the weights that the codes stand for, and rounds no activation."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Apply the layer to `[..., in_features]`."""
            mode, self.training = self.training, True
            try:
                return super().forward(x)
            finally:
                self.training = mode

    return SteadyLinear8bit


def held_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """All that a model's weights take: parameters, buffers, and the scales of codes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        while state is not None:  # the scales may be codes themselves
            yield from (value for value in vars(state).values() if torch.is_tensor(value))
            state = getattr(state, "state2", None)
        scales = getattr(weight, "SCB", None)
        if scales is None:  # the layer takes them from its weight when it is first used
            scales = getattr(getattr(module, "state", None), "SCB", None)
        if torch.is_tensor(scales):
            yield scales


@torch.no_grad()
def dequantised(model: Any) -> Any:
    """A copy on the CPU whose codes are fp32 numbers again, with its adapter on top.

    Args:
        model: a `PeftModel` on a quantised base.

    Raises:
        ModelError: the quantisation is of a kind that has no way back.
    """
    from peft import get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    # Found in the memo, a layer is not copied but replaced.
    numbers = {id(layer): _as_numbers(layer) for layer in model.modules() if _is_coded(layer)}
    twin = copy.deepcopy(model, numbers).to("cpu")
    name = twin.active_adapter
    config, weights = twin.peft_config[name], get_peft_model_state_dict(twin, adapter_name=name)
    base = twin.unload()
    try:
        if method_of(base) == "bitsandbytes":
            base.hf_quantizer.remove_quantization_config(base)
            base._weight_conversions = None  # those that read codes have no way back
        else:
            base = base.dequantize(dtype=torch.float32)
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            f"weights that are quantised by {method_of(model.get_base_model())} cannot be turned "
            f"into numbers again, which a merge needs ({error}); use the adapter as it is"
        ) from error
    adapted = get_peft_model(base.to(torch.float32), config, adapter_name=name)
    set_peft_model_state_dict(adapted, weights, adapter_name=name)
    return adapted.to(torch.float32).eval()


def _is_coded(layer: nn.Module) -> bool:
    """Whether it is one of bitsandbytes' layers, which PEFT's only wrap."""
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params") and (
        not hasattr(layer, "base_layer")
    )


def _as_numbers(layer: Any) -> nn.Linear:
    from peft.utils.integrations import dequantize_bnb_weight

    bias = None if layer.bias is None else layer.bias.detach().float().cpu()
    linear = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
    weight = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    linear.weight = nn.Parameter(weight.float().cpu(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def require_numbers(model: nn.Module, because: str) -> None:
    """Refuse weights that are codes of a quantisation, which can neither be trained nor added to.

    Raises:
        ModelError: the model is quantised.
    """
    method = getattr(model, "quantization_method", None)
    if method is not None:
        raise ModelError(
            f"the model's weights are quantised ({getattr(method, 'value', method)}), and "
            f"{because}: train with lora_r above 0, or give the model as it was before it was "
            "quantised"
        )
