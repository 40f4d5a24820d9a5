"""When memory asks for gradient checkpointing: measured on one pair, not guessed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from penchant.models.scoring import Scorer
from penchant.runtime import memory_available_bytes

if TYPE_CHECKING:
    from penchant.data.tokenise import TokenisedPair

logger = logging.getLogger("penchant")

USABLE = 0.85  # of what is free: allocators fragment


def activation_bytes_per_token(scorer: Scorer, example: TokenisedPair) -> float:
    """Bytes that autograd keeps for one token, measured by running one pair forward."""
    batch = scorer.batch([example.group()])
    weights = {p.untyped_storage().data_ptr() for p in scorer.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = scorer.training
    scorer.eval()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        scorer(batch)
    scorer.train(was_training)
    return sum(kept.values()) / batch.input_ids.numel()


def wants_checkpointing(
    scorer: Scorer,
    examples: Sequence[TokenisedPair],
    micro_batch_size: int,
    *,
    reserved_bytes: int = 0,
) -> bool:
    """Whether the longest micro-batch would not fit beside gradients and optimizer state.

    Args:
        scorer: planned, on its device.
        examples: the training pairs.
        micro_batch_size: pairs a forward pass.
        reserved_bytes: what will be allocated later, such as a frozen copy.
    """
    longest = max(examples, key=lambda e: e.group().num_tokens)
    sizes = sorted((e.group().num_tokens for e in examples), reverse=True)
    shortest = min(examples, key=lambda e: e.group().num_tokens)
    per_token = activation_bytes_per_token(scorer, shortest)
    tokens = sum(sizes[:micro_batch_size])
    trained = sum(p.numel() * p.element_size() for p in scorer.parameters() if p.requires_grad)
    needed = reserved_bytes + per_token * tokens + 3 * trained  # gradients and AdamW's two moments
    available = USABLE * memory_available_bytes(scorer.causal_model.device)
    logger.info(
        "activations: %.2f MB a token, at most %.2f GB a micro-batch (longest record: %s)",
        per_token / 1e6, per_token * tokens / 1e9, longest.where,
    )  # fmt: skip
    return needed > available


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in backward, layer by layer."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logger.info("gradient checkpointing is on: less memory, about a third more time")
