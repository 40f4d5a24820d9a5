"""What a policy says beside its tokens while it answers: entropies, and values of its value head.

A pass that scores the answers afterwards would say the same, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.models.policy import PolicyScorer


class Telling:
    """Values of the states that tokens are drawn from; none where the policy has no value head.

    Args:
        policy: whose value head, if it has one, stands on its own hidden states.
    """

    def __init__(self, policy: PolicyScorer) -> None:
        self.policy = policy
        self._values: list[Tensor] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """For a while, take what the output head is given, at the last position of each row."""
        if self.policy.value_head is None:
            yield
            return
        hook = self.policy.output_head.register_forward_pre_hook(self._take)
        try:
            yield
        finally:
            hook.remove()
            self._values.clear()

    def _take(self, head: Any, args: tuple[Tensor, ...]) -> None:
        self._values.append(self.policy.values_of(args[0][:, -1]))

    def values(self, count: int) -> Tensor | None:
        """`[count]`: of the last rows that went through the model; what was before is forgotten."""
        if self.policy.value_head is None:
            return None
        found = torch.cat(self._values)[-count:]
        self._values.clear()
        return found
