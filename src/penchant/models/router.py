"""The loss that keeps a router's experts in balance (Switch Transformer, Fedus et al. 2021)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class RouterLoss:
    """Of the passes since it was last asked for: `num_experts * sum_i f_i P_i`.

    f_i is the share of tokens that go to expert i, P_i its mean probability, each over all layers
    and all tokens that are laid out and are no padding: in a packed row a prompt counts once,
    where a padded batch counts it with every completion. The arithmetic is that of the model's own
    `load_balancing_loss_func`.

    Args:
        model: of transformers, whose configuration says how many experts serve a token.
        coefficient: of the loss.
    """

    def __init__(self, model: Any, coefficient: float) -> None:
        self.coefficient = coefficient
        self._top_k = int(model.config.get_text_config().num_experts_per_tok)
        own = sys.modules[type(model).__module__]
        self._balance: Any = getattr(own, "load_balancing_loss_func", None)
        if self._balance is None:
            from transformers.models.mixtral import modeling_mixtral

            self._balance = modeling_mixtral.load_balancing_loss_func
        self._losses: list[Tensor] = []

    def add(self, logits: tuple[Tensor, ...] | None, mask: Tensor | None) -> None:
        """Add one pass.

        Args:
            logits: of each layer's router, `[rows * T, experts]`.
            mask: `[rows, T]`, 1 for real tokens; None where all are.
        """
        if logits:
            flat = tuple(layer.flatten(0, -2) for layer in logits)
            self._losses.append(self._balance(flat, flat[0].shape[-1], self._top_k, mask))

    def take(self) -> Tensor | None:
        """The mean over the passes that were added, which are forgotten; None without any."""
        losses, self._losses = self._losses, []
        return torch.stack(losses).mean() if losses else None
