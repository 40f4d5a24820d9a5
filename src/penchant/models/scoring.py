"""Log-probabilities of completions under a model: the fast path, and the fallback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn

from penchant.data.batch import Group, Layout, TokenBatch, pack, pack_repeated, pad
from penchant.models import attention
from penchant.models.architecture import stateful_modules, text_backbone
from penchant.models.linear import use_fast_linear
from penchant.models.logprobs import completion_logprobs, effective_head
from penchant.models.segments import SegmentTable
from penchant.models.vocabulary import Also, LogitTransform

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from penchant.models.router import RouterLoss


@dataclass(frozen=True)
class ScoringPlan:
    """How completions are scored, and why not the fast way where it is not.

    Attributes:
        packed: prompts are shared in one row, with attention of our own.
        fused_head: log-probs are computed in chunks of the vocabulary.
        kernel: of packed attention.
        repeated: not packed, but in one row: each completion after a copy of its prompt, with the
            model's own attention, which tells texts apart by positions that restart.
        reason: what was tried and did not agree.
    """

    packed: bool
    fused_head: bool
    kernel: str
    reason: str = ""
    repeated: bool = False

    @property
    def layout(self) -> Layout:
        """Of the batches that are scored."""
        if self.packed:
            return "shared"
        return "repeated" if self.repeated else "padded"

    def describe(self) -> str:
        """One line for the screen and the summary."""
        layout = {
            "shared": f"packed shared prompts ({self.kernel})",
            "repeated": "packed, prompts repeated",
            "padded": "padded",
        }[self.layout]
        head = "fused" if self.fused_head else "full logits"
        why = f"; {self.reason}" if self.reason else ""
        return f"layout: {layout}, head: {head}{why}"


PLAIN = ScoringPlan(packed=False, fused_head=False, kernel="sdpa")


class Scorer(nn.Module):
    """Per-token log-probabilities of completions; wraps the model that is trained or compared.

    Its forward is the only way into the model, so that distributed wrappers see every pass.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, pad_token_id: int) -> None:
        super().__init__()
        use_fast_linear(model)
        self.model = model
        self.pad_token_id = pad_token_id
        self.plan = PLAIN
        self.pass_device: torch.device | None = None
        """Of its passes, where its weights may lie elsewhere between them."""
        self._takes_mask = False
        self.router: RouterLoss | None = None
        """Takes the routers' logits of passes that are trained on, where experts are balanced."""
        self.temperature, self.top_k, self.top_p = 1.0, 0, 1.0
        own = self.causal_model.config._attn_implementation
        if own == attention.NAME:  # another scorer has the model under its plan
            own = self.causal_model.get_correct_attn_implementation(None)
        self._plain_attention = own

    @property
    def causal_model(self) -> PreTrainedModel:
        """The transformers model under a possible adapter."""
        return causal_model(self.model)

    @property
    def causal_models(self) -> list[PreTrainedModel]:
        """Every transformers model that is trained together with this one, itself first."""
        return [self.causal_model]

    def sample_from(self, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
        """Score as the distribution that answers are sampled from, from now on."""
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    @property
    def is_filtered(self) -> bool:
        """Whether answers are sampled from the likeliest tokens alone."""
        return bool(self.top_k) or self.top_p < 1

    def use(self, plan: ScoringPlan) -> None:
        """Score as `plan` says from now on."""
        self.plan = plan
        attention.register()
        wanted = attention.NAME if plan.packed else self._plain_attention
        if self.causal_model.config._attn_implementation != wanted:
            self.causal_model.set_attn_implementation(wanted)
        modules = stateful_modules(self.causal_model)
        # Without a mask transformers looks whether positions restart, and waits for the device.
        self._takes_mask = not modules
        if modules:
            from penchant.models import mixers

            (mixers.take_packed_rows if plan.packed else mixers.take_plain_rows)(modules)

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Give the model its own attention back for a while, to generate with a cache."""
        plan = self.plan
        self.use(PLAIN)
        try:
            yield
        finally:
            self.use(plan)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Let the model answer: its own attention, no dropout, logits as scoring has them.

        What autocast rounds is rounded once for all tokens, not once for each.
        """
        from penchant.models.casting import cast_once

        once = nullcontext() if self.is_sharded else cast_once(self.causal_model)
        whole, plain = self.opened(layers=True), self.plain_attention()
        with whole, self.evaluating(), plain, once, unrounded(self.output_head):
            yield

    @property
    def is_sharded(self) -> bool:
        """Whether the processes of the run divide the weights among them (`sharding.py`)."""
        return hasattr(self, "unshard")

    def opened(self, *, layers: bool = False) -> AbstractContextManager[None]:
        """Weights that are read outside of `forward`: the heads', or with `layers` all, whole."""
        if not self.is_sharded:
            return nullcontext()
        from penchant.models.sharding import opened

        return opened(self, layers=layers)

    @property
    def device(self) -> torch.device:
        """Of its passes."""
        return self.pass_device or self.causal_model.device

    @property
    def offloads(self) -> bool:
        """Whether its weights lie in main memory between the passes of another device."""
        return self.device.type != self.causal_model.device.type

    @property
    def output_head(self) -> Any:
        """The layer that the last hidden states meet."""
        return self.causal_model.get_output_embeddings()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout off for a while; the mode returns after an exception too."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def batch(self, groups: Sequence[Group], *, with_prompts: bool = False) -> TokenBatch:
        """Lay groups out as the plan says, on the model's device."""
        laid_out = self.lay_out(groups, with_prompts=with_prompts)
        return laid_out.to(self.device)

    def lay_out(self, groups: Sequence[Group], *, with_prompts: bool = False) -> TokenBatch:
        """Lay groups out as the plan says, on the CPU."""
        if self.plan.layout == "padded":
            return pad(groups, self.pad_token_id, with_prompts=with_prompts)
        lay_out = pack if self.plan.packed else pack_repeated
        return lay_out(groups, with_prompts=with_prompts)

    def forward(self, batch: TokenBatch, also: Also = None) -> Tensor:
        """`[N]`: log p of every scored token, in the order of `batch.targets`.

        With `also` `[2, N]`: below it what it names, of each position, without gradient.
        """
        if not self.plan.fused_head:
            return self._from_full_logits(batch, also)
        head = self.head_inputs(batch)
        if self.is_filtered:
            logprobs, entropy = self.whole_distribution(head, batch)
            return logprobs if also is None else torch.stack([logprobs, entropy.detach()])
        hidden, weight, bias = head
        return completion_logprobs(
            hidden, weight, batch.targets, bias=bias, transform=self.transform, also=also
        )

    def as_trained(self, batch: TokenBatch) -> Any:
        """What a training pass computes."""
        return self(batch)

    def whole_distribution(
        self, head: tuple[Tensor, Tensor, Tensor | None], batch: TokenBatch
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies `[N]` under temperature and filters, both differentiable."""
        from penchant.models.distribution import whole_distribution

        return whole_distribution(
            head, batch.targets, transform=self.transform, top_k=self.top_k, top_p=self.top_p
        )

    @property
    def transform(self) -> LogitTransform:
        """What the model does to its logits, and the temperature."""
        own = LogitTransform.of(self.causal_model.config.get_text_config())
        return replace(own, temperature=self.temperature)

    def head_inputs(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """`[N, H]` hidden states that predict completion tokens, and the head they meet."""
        return effective_head(self.hidden_states(batch)[batch.predictors], self.output_head)

    def hidden_states(self, batch: TokenBatch) -> Tensor:
        """`[rows * T, H]`: the last layer's, at every position."""
        backbone = text_backbone(self.causal_model)
        out: Any = backbone(**self._model_inputs(batch), use_cache=False)
        self._balance(out, batch)
        return out.last_hidden_state.flatten(0, 1)

    def _model_inputs(self, batch: TokenBatch) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "attention_mask": batch.attention_mask,
        }
        if batch.segments is not None:
            inputs["segments"] = SegmentTable.of(batch, self.plan.kernel)
            if self._takes_mask:
                inputs["attention_mask"] = batch.kept["seen"]
        if self._balances:
            inputs["output_router_logits"] = True
        return inputs

    @property
    def _balances(self) -> bool:
        return self.router is not None and self.training and torch.is_grad_enabled()

    def _balance(self, out: Any, batch: TokenBatch) -> None:
        if self.router is not None and self._balances:
            self.router.add(out.router_logits, batch.attention_mask)

    def _from_full_logits(self, batch: TokenBatch, also: Also) -> Tensor:
        every = self._distributions(batch)
        logprobs = every.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
        if also is None:
            return logprobs
        from penchant.models.distribution import entropies

        detached = every.detach()
        second = (2 * detached).logsumexp(-1) if also == "collisions" else entropies(detached)
        return torch.stack([logprobs, second])

    def _distributions(self, batch: TokenBatch) -> Tensor:
        """`[N, V]`: log-probs of every token where a scored one is predicted, under the filters."""
        logits = self.full_logits(batch)
        if self.is_filtered:
            from penchant.models.distribution import filtered

            logits = filtered(logits, self.top_k, self.top_p, kept=batch.targets)
        return logits.log_softmax(-1)

    def full_logits(self, batch: TokenBatch) -> Tensor:
        """`[N, V]`, in fp32 or better, at the temperature, without filters."""
        with unrounded(self.output_head):
            out: Any = self.causal_model(**self._model_inputs(batch), use_cache=False)
        self._balance(out, batch)
        rows = out.logits.flatten(0, 1)[batch.predictors]
        accumulate = torch.float64 if rows.dtype == torch.float64 else torch.float32
        return rows.to(accumulate) / self.temperature


def causal_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model under a possible adapter; its layers hold the adapter's."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def unrounded(head: Any) -> AbstractContextManager[None]:
    """Let a head give its results in fp32 for a while where half precision would round them."""
    weights = list(head.parameters())
    rounds = bool(weights) and torch.is_autocast_enabled(weights[0].device.type)
    if not rounds and all(weight.dtype.itemsize >= 4 for weight in weights):
        return nullcontext()
    from penchant.models.head_logits import rounding_inputs_alone

    return rounding_inputs_alone(head)
