"""Log-probabilities under a second model, frozen: a copy of the policy, or another one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft import PeftModel

from penchant.models.reference import weighted_sums
from penchant.models.scoring import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.data.batch import Group, TokenBatch


class CopyReference:
    """A second model, frozen."""

    def __init__(self, scorer: Scorer, kind: str = "copy") -> None:
        self._scorer = scorer.eval().requires_grad_(False)
        self.kind = kind

    @contextmanager
    def active(self) -> Iterator[Scorer]:
        yield self._scorer

    @torch.no_grad()
    def sums(
        self, groups: Sequence[Group], batch: TokenBatch, weights: Tensor | None = None
    ) -> Tensor:
        if self._scorer.plan.layout != batch.layout:
            batch = self._scorer.batch(groups)
        return weighted_sums(batch, self._scorer(batch), weights)

    @torch.no_grad()
    def mix_in(self, policy: Scorer, alpha: float) -> None:
        """Move towards the policy: `reference = alpha * policy + (1 - alpha) * reference`.

        The soft update of TR-DPO (Gorbatovski et al. 2024, https://arxiv.org/abs/2404.09656);
        an adapter's part is added to the weights it stands on.
        """
        from penchant.models.effective import effective_weights

        own = dict(self._scorer.causal_model.named_parameters())
        for name, weight in effective_weights(policy):
            own[name].lerp_(weight.to(own[name]), alpha)

    def weights(self) -> dict[str, Tensor]:
        """By parameter name, for a checkpoint."""
        return dict(self._scorer.causal_model.named_parameters())


def frozen_copy(policy: Scorer) -> CopyReference:
    """A copy of the policy as it is now; a fresh adapter, which changes nothing, is left out.

    One that holds a part of the base is added to it again.
    """
    with policy.plain_attention():
        model = copy.deepcopy(policy.model)
    if isinstance(model, PeftModel):
        initial = getattr(model.peft_config[model.active_adapter], "init_lora_weights", True)
        model = model.unload() if initial is True else model.merge_and_unload()
    twin = Scorer(model, policy.pad_token_id)
    twin.use(policy.plan)
    return CopyReference(twin)
