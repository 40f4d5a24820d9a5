"""The machine and the model: what there is, and what training would take, without the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.errors import ConfigError, ModelError
from penchant.footprint import USABLE, recomputed_bytes, training_state

UNITS = {"": 1, "k": 1, "m": 2, "g": 3, "t": 4}
OVERHEAD_BYTES = 0.6e9  # the program itself, and the device's libraries

# Bytes that autograd keeps a token, for every input and output of a linear layer. Measured on a
# Llama of 135M parameters with the packed layout: 1.21 MB (fp32, LoRA) for 0.305M of them.
ACTIVATION_BYTES = {
    ("fp32", True): 4.0,
    ("fp32", False): 4.4,
    ("half", True): 2.4,
    ("half", False): 3.0,
}


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on.

    Attributes:
        num_parameters: of the language model, tied ones once.
        num_layer_parameters: of the linear layers without the head.
        width: inputs and outputs of those layers, added up: times the rank it is LoRA's weights.
        hidden: size of the hidden state; num_layers: of them; vocabulary: tokens.
        context: longest input in tokens, where there is a limit.
        scores: whether it is a reward model.
    """

    num_parameters: int
    num_layer_parameters: int
    width: int
    hidden: int
    num_layers: int
    vocabulary: int
    context: int | None
    scores: bool


@dataclass(frozen=True)
class Machine:
    """Where training would run.

    Attributes:
        device: cpu or cuda, as found here.
        memory_bytes: given, or free now.
        given: whether the user said so.
        precision: of the arithmetic.
    """

    device: str
    memory_bytes: int
    given: bool
    precision: str

    @property
    def usable_bytes(self) -> float:
        """What a plan may take."""
        return USABLE * self.memory_bytes


@dataclass(frozen=True)
class Load:
    """How a run would use the memory.

    Attributes:
        lora_r: rank, 0 for all weights.
        base: dtype of the weights.
        tokens: of the longest micro-batch.
        checkpointing: activations are recomputed.
        copies: of the weights as a reference.
    """

    lora_r: int
    base: str
    tokens: int
    checkpointing: bool = False
    copies: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what they hold."""

    weights: float
    reference: float
    gradients: float
    optimizer: float
    activations: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it at once."""
        trained = self.gradients + self.optimizer
        return self.weights + self.reference + trained + self.activations + self.overhead


def estimate(size: ModelSize, load: Load, precision: str) -> Estimate:
    """What a run takes, roughly: weights, reference, gradients, AdamW's moments, activations."""
    width_bytes = 4 if load.base == "fp32" else 2
    weights = size.num_parameters * width_bytes
    adapter = size.width * load.lora_r
    gradients, moments = training_state(4 * (adapter if load.lora_r else size.num_parameters))
    return Estimate(
        weights=weights + 4 * adapter,
        reference=load.copies * weights,
        gradients=gradients,
        optimizer=moments,
        activations=_activations(size, load, precision),
        overhead=OVERHEAD_BYTES,
    )


def _activations(size: ModelSize, load: Load, precision: str) -> float:
    kind = "fp32" if precision == "fp32" else "half"
    by_token = size.width * ACTIVATION_BYTES[kind, load.lora_r > 0]
    if load.checkpointing:
        by_token = recomputed_bytes(by_token, size.hidden, size.num_layers)
    # Autocast keeps a half-precision copy of every weight that it multiplied with.
    copies = 2 * size.num_layer_parameters if kind == "half" and load.base == "fp32" else 0
    return by_token * load.tokens + (copies if not load.lora_r else 0)


def parse_memory(text: str) -> int:
    """Bytes of a size such as 24GiB (powers of 1024) or 16GB (of 1000).

    Raises:
        ConfigError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?\s*", str(text).lower())
    if not found or float(found[1]) == 0:
        raise ConfigError(
            f"memory must be a size with its unit, such as 24GiB or 16GB, got {text!r}; set memory"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2]])


def find_machine(memory_bytes: int | None) -> Machine:
    """The device of this machine, with the memory given or what is free."""
    import torch

    from penchant.runtime import memory_available_bytes, resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Machine(
        device=device.type,
        memory_bytes=memory_available_bytes(device) if memory_bytes is None else memory_bytes,
        given=memory_bytes is not None,
        precision=resolve_precision("auto", device),
    )


def measure_model(name: str, *, trust_remote_code: bool = False) -> ModelSize:
    """Sizes of a resolved model, built from its configuration without any memory for weights.

    Raises:
        ModelError: no configuration, or not one of a language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from penchant.models.load import is_score_model

    folder = base_model(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"no model could be loaded from {name}: {error}") from error
    layers = list(layer_shapes(model))
    text = config.get_text_config()
    return ModelSize(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_layer_parameters=sum(a * b for a, b in layers),
        width=sum(a + b for a, b in layers),
        hidden=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        context=getattr(text, "max_position_embeddings", None),
        scores=is_score_model(name),
    )


def layer_shapes(model: Any) -> Iterator[tuple[int, int]]:
    """Shapes of the matrices between embeddings and head; GPT-2 keeps its transposed."""
    head = model.get_output_embeddings()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or module is head or "Embedding" in type(module).__name__:
            continue
        if weight.ndim == 2:
            yield weight.shape[0], weight.shape[1]


def base_model(name: str) -> str:
    """The model that an adapter stands on, or the model itself."""
    from penchant.models.load import is_adapter, resolve

    if not is_adapter(Path(name)):
        return name
    from peft import PeftConfig

    return base_model(resolve(str(PeftConfig.from_pretrained(name).base_model_name_or_path)))
