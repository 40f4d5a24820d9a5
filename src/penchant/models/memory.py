"""What training will need beside the weights: measured on one record, not guessed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.machine import USABLE, memory_available_bytes
from penchant.models.footprint import training_state
from penchant.models.policy import PolicyScorer
from penchant.models.scoring import Scorer

if TYPE_CHECKING:
    from penchant.data.batch import Group, TokenBatch

logger = logging.getLogger("penchant")


def activation_bytes(scorer: Scorer, group: Group) -> tuple[float, float]:
    """Bytes that autograd keeps: a fixed part, such as half-precision weights, and by token.

    Measured by running one group forward, alone and twice in one batch.
    """
    weights = {p.untyped_storage().data_ptr() for p in scorer.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: an output that its own node holds is a cycle nobody collects.
        return tensor.detach()

    was_training = scorer.training
    scorer.eval()
    found = []
    for copies in (1, 2):
        torch.clear_autocast_cache()
        kept.clear()
        batch = scorer.batch([group] * copies)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            scores = _as_trained(scorer, batch)
        found.append((batch.input_ids.numel(), sum(kept.values())))
        del scores
    scorer.train(was_training)
    (tokens, once), (more_tokens, twice) = found
    per_token = (twice - once) / (more_tokens - tokens)
    return max(0.0, once - per_token * tokens), per_token


def _as_trained(scorer: Scorer, batch: TokenBatch) -> Any:
    """What a training pass computes: a policy's values too."""
    return scorer(batch, policy=True) if isinstance(scorer, PolicyScorer) else scorer(batch)


def training_bytes(scorer: Scorer, groups: Sequence[Group], micro_batch_size: int) -> float:
    """Activations of the longest micro-batch, gradients and AdamW's two moments.

    Args:
        scorer: planned, on its device.
        groups: the training records.
        micro_batch_size: records a forward pass.
    """
    sizes = sorted((group.num_tokens for group in groups), reverse=True)
    fixed, per_token = activation_bytes(scorer, min(groups, key=lambda g: g.num_tokens))
    activations = fixed + per_token * sum(sizes[:micro_batch_size])
    trained = sum(p.numel() * p.element_size() for p in scorer.parameters() if p.requires_grad)
    logger.info(
        "activations: %.2f MB a token, at most %.2f GB a micro-batch (longest record: %d tokens)",
        per_token / 1e6, activations / 1e9, sizes[0],
    )  # fmt: skip
    return activations + sum(training_state(trained))


def usable_bytes(scorer: Scorer) -> float:
    """What may still be allocated on the model's device."""
    return USABLE * memory_available_bytes(scorer.causal_model.device)


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in backward, layer by layer."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logger.info("gradient checkpointing is on: less memory, about a third more time")
