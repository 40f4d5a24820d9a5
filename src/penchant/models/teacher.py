"""A teacher: a frozen model whose distributions a policy learns at every token of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from penchant.models.divergence import Lesson, Said
from penchant.models.other_adapters import adapter_bytes, free_name, load_beside, restored
from penchant.models.reference import SameBackbone

if TYPE_CHECKING:
    from penchant.data.batch import Group, TokenBatch
    from penchant.models.policy import PolicyScorer
    from penchant.models.reference import Reference


@dataclass(frozen=True)
class Teacher:
    """What a policy is compared with at every token.

    Attributes:
        held: the model, which is active for a while like a reference.
        beta: the teacher's weight in the mixture of the divergence (`divergence.py`).
        num_bytes: of memory beside the policy.
    """

    held: Reference
    beta: float
    num_bytes: int = 0

    @torch.no_grad()
    def lesson(self, groups: Sequence[Group], batch: TokenBatch, policy: PolicyScorer) -> Lesson:
        """Of the completions of `groups`, which `batch` lays out for the policy."""
        with self.held.active() as other:
            assert other is not None, "a cache cannot know what will be sampled"
            own = batch if other.plan.layout == batch.layout else other.batch(groups)
            if not (policy.plan.fused_head and other.plan.fused_head):
                return Lesson(None, other.full_logits(own), self.beta)
            with other.opened():
                hidden, weight, bias = other.head_inputs(own)
                if other.is_sharded:  # they are given back when this ends
                    weight, bias = weight.clone(), None if bias is None else bias.clone()
            return Lesson(Said(hidden, weight, bias, other.transform), None, self.beta)


class TeacherAdapter(SameBackbone):
    """A teacher that is another adapter of the policy's base: no second backbone.

    Args:
        policy: whose model has an adapter; it gets a second one, frozen.
        folder: the resolved folder of the teacher's adapter, of the same base.

    Raises:
        ModelError: the adapter's weights do not fit the policy's model.
    """

    kind = "adapter"

    def __init__(self, policy: PolicyScorer, folder: str) -> None:
        assert isinstance(policy.model, PeftModel)
        self._policy, model = policy, policy.model
        self.adapter = free_name(model, "teacher")
        with restored(model):
            load_beside(model, folder, self.adapter)
        self.num_bytes = adapter_bytes(model, self.adapter)
        self._switches: list[Any] = [m for m in model.modules() if hasattr(m, "_active_adapter")]

    @contextmanager
    def active(self) -> Iterator[PolicyScorer]:
        """The policy with the teacher's adapter in place of its own."""
        before = [switch._active_adapter for switch in self._switches]
        # PEFT's own `set_adapter` walks the model and turns gradients on and off.
        for switch in self._switches:
            switch._active_adapter = [self.adapter]
        try:
            with self._policy.evaluating():
                yield self._policy
        finally:
            for switch, adapter in zip(self._switches, before, strict=True):
                switch._active_adapter = adapter
