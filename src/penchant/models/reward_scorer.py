"""Scores of whole completions under a reward model: a scalar head on the last token's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from penchant.data.batch import Group, TokenBatch
from penchant.models.logprobs import effective_head
from penchant.models.scoring import Scorer, unrounded
from penchant.models.vocabulary import Also

if TYPE_CHECKING:
    from torch import Tensor


class RewardScorer(Scorer):
    """One score a completion; wraps a model with a `score` head of one label."""

    def lay_out(self, groups: Sequence[Group], *, with_prompts: bool = False) -> TokenBatch:
        """Lay groups out; `ends` are where transformers reads the score.

        That is the last token that is not padding, by its id: where end and pad token are one,
        the score stands before the end token.
        """
        batch = super().lay_out(groups, with_prompts=with_prompts)
        own = [len(self._read(group, c)) for group in groups for c in group.completions]
        full = [len(c) for group in groups for c in group.completions]
        back = [f - o for f, o in zip(full, own, strict=True)]
        return replace(batch, ends=batch.ends - torch.tensor(back))

    @property
    def output_head(self) -> Any:
        """The layer that makes scores."""
        model: Any = self.causal_model
        return model.score

    def _read(self, group: Group, completion: Sequence[int]) -> Sequence[int]:
        end = len(completion)
        while end > 1 and completion[end - 1] == self.pad_token_id:
            end -= 1
        return completion[:end]

    def forward(self, batch: TokenBatch, also: Also = None) -> Tensor:
        """`[completions]`: the scores, in fp32 or better."""
        assert also is None, "a reward model has no probabilities"
        if not self.plan.fused_head:
            with unrounded(self.output_head):
                logits = self.causal_model(**self._model_inputs(batch), use_cache=False).logits
            return logits.squeeze(-1).to(_precise(logits.dtype))
        hidden = self.hidden_states(batch)[batch.ends]
        dtype = _precise(hidden.dtype)
        hidden, weight, bias = effective_head(hidden.to(dtype), self.output_head)
        # One row a completion costs nothing: it need not be rounded as the products are.
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return torch.nn.functional.linear(hidden, weight.to(dtype), bias).squeeze(-1)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
