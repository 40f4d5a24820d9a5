"""Positions that a trainer's differentiated passes lay out, padding included: by step."""

from __future__ import annotations

from typing import Any

import torch


class Positions:
    """Counts the tokens that a model embeds where gradients are kept.

    Args:
        model: of transformers, under any wrapper that tells its input embeddings.
    """

    def __init__(self, model: Any) -> None:
        self._count = 0
        model.get_input_embeddings().register_forward_pre_hook(self._add)

    def _add(self, module: Any, args: tuple[torch.Tensor, ...]) -> None:
        self._count += args[0].numel() if torch.is_grad_enabled() else 0

    def since(self) -> int:
        """How many since the last call."""
        count, self._count = self._count, 0
        return count


def per_position(seconds: list[list[float]], positions: list[list[int]]) -> float:
    """Nanoseconds a position of one trainer's runs: the median over its runs.

    Args:
        seconds, positions: of each run, by step.
    """
    each = sorted(1e9 * sum(s) / sum(p) for s, p in zip(seconds, positions, strict=True))
    return each[len(each) // 2]
