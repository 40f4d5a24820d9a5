"""A policy with a value head: log-probs, values and entropies of one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from penchant.models.distribution import entropies
from penchant.models.logprobs import completion_logprobs, effective_head
from penchant.models.scoring import Scorer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from penchant.data.batch import TokenBatch
    from penchant.models.divergence import Lesson
    from penchant.models.scoring import ScoringPlan
    from penchant.models.vocabulary import Also


# Beside the policy's own files, which other tools read without it.
VALUE_HEAD = "value_head.safetensors"


class PolicyOutput(NamedTuple):
    """Of every completion token, `[N]` each."""

    logprobs: Tensor
    entropy: Tensor
    """In nats; differentiable only where the policy was told so."""
    values: Tensor | None
    """Of the state before the token: the value head where the token is predicted."""
    divergence: Tensor | None = None
    """From a teacher, differentiable; None without one."""
    teacher_kl: Tensor | None = None
    """KL(policy || teacher), without gradient."""


class PolicyScorer(Scorer):
    """A scorer that is sampled from and may have a value head.

    Args:
        model, pad_token_id: as for `Scorer`.
        value_head: from the last hidden state to one number; None for methods without values.
        critic: a model of its own under the value head; None: the policy's.
        entropy_gradient: an entropy bonus is trained, so that entropies need a gradient.
    """

    def __init__(
        self,
        model: Any,
        pad_token_id: int,
        *,
        value_head: nn.Linear | None = None,
        critic: Scorer | None = None,
        entropy_gradient: bool = False,
    ) -> None:
        super().__init__(model, pad_token_id)
        self.value_head = value_head
        self.critic = critic
        self.entropy_gradient = entropy_gradient

    @property
    def causal_models(self) -> list[PreTrainedModel]:
        return [*super().causal_models, *(self.critic.causal_models if self.critic else [])]

    def use(self, plan: ScoringPlan) -> None:
        super().use(plan)
        if self.critic is not None:
            self.critic.use(plan)

    def forward(
        self,
        batch: TokenBatch,
        also: Also = None,
        policy: bool = False,
        lesson: Lesson | None = None,
    ) -> Any:
        """Log-probs as `Scorer` gives them, or with `policy` a `PolicyOutput`.

        With a teacher's `lesson` its log-probs and entropies have no gradient, but the divergence.
        """
        if not policy:
            return super().forward(batch, also)
        if lesson is not None:
            return self._taught(batch, lesson)
        if not self.plan.fused_head:
            every = self._distributions(batch)
            logprobs = every.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
            entropy = entropies(every if self.entropy_gradient else every.detach())
            states = self.hidden_states(batch) if self._reads_own_states else None
            return PolicyOutput(logprobs, entropy, self._values(batch, states))
        states = self.hidden_states(batch)
        head = effective_head(states[batch.predictors], self.output_head)
        if self.entropy_gradient or self.is_filtered:
            logprobs, entropy = self.whole_distribution(head, batch)
        else:
            hidden, weight, bias = head
            both = completion_logprobs(
                hidden, weight, batch.targets, bias=bias, transform=self.transform, also="entropy"
            )
            # No views: what a forward returns carries the hooks of sharded weights.
            logprobs, entropy = both[0].clone(), both[1].clone()
        return PolicyOutput(logprobs, entropy, self._values(batch, states))

    def _taught(self, batch: TokenBatch, lesson: Lesson) -> PolicyOutput:
        from penchant.models.divergence import Said, divergence_of_heads, divergence_of_logits

        states = None
        if lesson.said is not None:
            states = self.hidden_states(batch)
            head = effective_head(states[batch.predictors], self.output_head)
            own = Said(*head, self.transform)
            found = divergence_of_heads(own, lesson.said, batch.targets, lesson.beta)
        else:
            assert lesson.logits is not None
            logits = self.full_logits(batch)
            found = divergence_of_logits(logits, lesson.logits, batch.targets, lesson.beta)
            states = self.hidden_states(batch) if self._reads_own_states else None
        values = self._values(batch, states)
        return PolicyOutput(found.logprobs, found.entropy, values, found.divergence, found.kl)

    def as_trained(self, batch: TokenBatch) -> PolicyOutput:
        """A training pass computes values too."""
        output: PolicyOutput = self(batch, policy=True)
        return output

    @property
    def _reads_own_states(self) -> bool:
        return self.value_head is not None and self.critic is None

    def _values(self, batch: TokenBatch, states: Tensor | None) -> Tensor | None:
        if self.value_head is None:
            return None
        if self.critic is not None:
            states = self.critic.hidden_states(batch)
        assert states is not None
        return self.values_of(states[batch.predictors])

    def values_of(self, states: Tensor) -> Tensor:
        """`[N]`: the value head's, of hidden states `[N, H]`."""
        assert self.value_head is not None
        weight = self.value_head.weight
        # One number a token costs nothing: it need not be rounded as the products are.
        with torch.autocast(weight.device.type, enabled=False):
            values: Tensor = self.value_head(states.to(weight.dtype)).squeeze(-1)
        return values


def make_value_head(model: Any, device: torch.device | None = None) -> nn.Linear:
    """A value head that says 0 of every state, in fp32."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
