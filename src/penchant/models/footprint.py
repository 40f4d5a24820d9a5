"""The arithmetic of memory, without any model: what is measured and what is foreseen share it."""

from __future__ import annotations

from dataclasses import dataclass

from penchant.models.size import ModelSize

NUM_MOMENTS = 2  # of AdamW, each as large as what is trained


def training_state(trained: float) -> tuple[float, float]:
    """Bytes of gradients and of AdamW's moments, for so many bytes of trained weights."""
    return trained, NUM_MOMENTS * trained


def recomputed_bytes(by_token: float, hidden: int, num_layers: int) -> float:
    """Activations a token under checkpointing.

    Each layer's input, and all of the one layer that is being recomputed.

    Args:
        by_token: bytes without it.
        hidden: size of the hidden state; num_layers: of them.
    """
    return by_token / max(num_layers, 1) + 4 * hidden * num_layers


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
