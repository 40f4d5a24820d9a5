"""A reward model that is an adapter on the policy's own backbone, and adds only its size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import load_peft_weights
from torch import nn

from penchant.models import other_adapters
from penchant.models.other_adapters import adapter_bytes, free_name, load_beside, restored
from penchant.models.reward_scorer import RewardScorer
from penchant.models.scoring import causal_model
from penchant.rl.rewards.models import ModelContext, ModelReward
from penchant.rl.rewards.shaping import Statistics
from penchant.rl.rewards.tokens import RewardTokens

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from penchant.data.batch import TokenBatch
    from penchant.models.vocabulary import Also

ADAPTER = "reward"


class SharedAdapterReward(ModelReward):
    """A reward adapter that borrows the policy's frozen base while it scores.

    Its LoRA weights are loaded into the policy under a name of their own, frozen; its head is kept
    apart. Outside of a call the policy is as it was: active adapter, what trains, which modules
    are in training mode, how attention runs. Save the policy with `selected_adapters`, or PEFT
    writes this adapter beside it.

    Args:
        name: by which metrics and messages call it.
        folder: the resolved folder of the adapter.
        tokens: encodes samples.
        context: of the run, with a policy.
        statistics: of the model's training, where they are known.

    Raises:
        ModelError: the adapter's weights do not fit the policy's model.
    """

    shares_policy = True

    def __init__(
        self,
        name: str,
        folder: str,
        tokens: RewardTokens,
        context: ModelContext,
        statistics: Statistics | None = None,
        *,
        pad_token_id: int,
    ) -> None:
        assert context.policy is not None
        self.policy, self._is_borrowed = context.policy, False
        self.adapter = free_name(self.policy, ADAPTER)
        with restored(self.policy):
            weights = load_beside(self.policy, folder, self.adapter)
            head = _linear(weights).to(causal_model(self.policy).device)
            scorer = _SharedScorer(self.policy, pad_token_id, head)
        super().__init__(name, scorer, tokens, context, statistics)

    def ready(self) -> AbstractContextManager[None]:
        """The policy with this adapter in place of its own."""
        return self._borrowed()

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        if self._is_borrowed:
            yield
            return
        with self.context.whole(), restored(self.policy):
            self.policy.set_adapter(self.adapter, inference_mode=True)
            self.policy.requires_grad_(False)
            self.policy.eval()
            self.scorer.use(self.scorer.plan)
            self._is_borrowed = True
            try:
                yield
            finally:
                self._is_borrowed = False

    def held_bytes(self) -> int:
        """Memory of the adapter and its head: all that is not the policy's."""
        head: Any = self.scorer.score
        of_head = sum(p.numel() * p.element_size() for p in head.parameters())
        return adapter_bytes(self.policy, self.adapter) + of_head


class _SharedScorer(RewardScorer):
    """The policy's hidden states under a head that is not part of the policy."""

    def __init__(self, policy: PeftModel, pad_token_id: int, score: nn.Linear) -> None:
        super().__init__(policy, pad_token_id)
        self.score = score

    def forward(self, batch: TokenBatch, also: Also = None) -> Tensor:
        """`[completions]`: the scores, in fp32 or better."""
        assert also is None, "a reward model has no probabilities"
        hidden = self.hidden_states(batch)[batch.ends]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # One row a completion costs nothing: it need not be rounded as the products are.
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.score.bias is None else self.score.bias.to(dtype)
            weight = self.score.weight.to(dtype)
            return nn.functional.linear(hidden.to(dtype), weight, bias).squeeze(-1)


def why_apart(folder: str, context: ModelContext) -> str | None:
    """Why a reward model cannot live on the policy's weights, or None where it can.

    Args:
        folder: the resolved name of the reward model.
        context: of the run.
    """
    reason = other_adapters.why_apart(folder, context.policy, context.base)
    if reason is not None:
        return reason
    keys = load_peft_weights(folder, device="cpu").keys()
    if not any(other_adapters.HEAD in key for key in keys):
        return "its file holds no score head"
    if any("lora_" not in key and other_adapters.HEAD not in key for key in keys):
        return "it holds layers that are trained whole"
    return None


def _linear(weights: dict[str, Tensor]) -> nn.Linear:
    weight = next(value for key, value in weights.items() if key.endswith(".weight"))
    bias = next((value for key, value in weights.items() if key.endswith(".bias")), None)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return head.requires_grad_(False)
