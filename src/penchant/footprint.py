"""The arithmetic of memory, without any model: what is measured and what is foreseen share it."""

from __future__ import annotations

USABLE = 0.85  # of the memory: allocators fragment
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
