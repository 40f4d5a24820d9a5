"""Log-probabilities of completion tokens from hidden states and the head that they meet.

No `[N, V]` tensor is made. With a frozen head the gradient with respect to the hidden states is
formed in the same walk over the vocabulary as the log-probs: d log p(y) / d logits = onehot(y) -
softmax, which does not depend on what comes after it except for one factor per token, so backward
is a single multiplication.
A head that is trained too needs more: `trainable_head.py`. Shapes are named as in `vocabulary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper

from penchant.models.linear import is_low_rank, is_plain
from penchant.models.vocabulary import (
    AS_IS,
    Also,
    Head,
    LogitTransform,
    walk_vocabulary,
)

if TYPE_CHECKING:
    from torch import Tensor


def completion_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform = AS_IS,
    also: Also = None,
) -> Tensor:
    """log p(target) for every row.

    Args:
        hidden: `[N, H]`, hidden states at the positions that predict the targets.
        weight: `[V, H]`, the language-model head; bias: `[V]`.
        targets: `[N]`, token ids.
        transform: what the model does to its logits.
        also: what else of each row's distribution.

    Returns:
        `[N]` in fp32 (fp64 for fp64 weights), in nats; with `also` `[2, N]`, whose second row has
        no gradient.
    """
    trainable = weight.requires_grad or (bias is not None and bias.requires_grad)
    head = Head(hidden, weight, bias, transform)
    if trainable:
        from penchant.models.trainable_head import trained_logprobs

        return trained_logprobs(head, hidden, targets, also)
    logprobs, second = _FrozenHead.apply(hidden, head, targets, also)
    return torch.stack([logprobs, second]) if also else logprobs


class _FrozenHead(torch.autograd.Function):
    """Only the hidden states are trained: their gradient is formed during forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, also: Also
    ) -> tuple[Tensor, Tensor]:
        walked = walk_vocabulary(
            head, hidden, targets, direction=ctx.needs_input_grad[0], also=also
        )
        ctx.save_for_backward(walked.direction)
        ctx.mark_non_differentiable(walked.second)
        return walked.logprobs, walked.second

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors  # [N, H]
        return direction * grad.unsqueeze(1).to(direction.dtype), None, None, None


def effective_head(hidden: Tensor, head: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states `[N, H']`, weight `[V, H']` and bias of one plain linear head.

    A LoRA head is `W h + s B A dropout(h)`: the same as `[W, s B]` applied to `[h, A dropout(h)]`,
    so the low-rank part rides along as a few more columns.

    Raises:
        TypeError: the head is more than that, as one with DoRA.
    """
    if isinstance(head, ModulesToSaveWrapper):
        off = head.disable_adapters or not head.active_adapters
        used = head.original_module if off else head.modules_to_save[head.active_adapters[0]]
        return effective_head(hidden, used)
    if isinstance(head, TrainableTokensWrapper):  # tied to an embedding with rows of its own
        base = _plain(head.original_module)
        off = head.token_adapter.disable_adapters or not head.token_adapter.active_adapters
        return hidden, base.weight if off else head.weight, base.bias
    if not isinstance(head, LoraLayer):
        return hidden, _plain(head).weight, head.bias
    layer: Any = head
    base = _plain(layer.get_base_layer())
    columns: list[Tensor] = [hidden]
    blocks: list[Tensor] = [base.weight]
    if not layer.disable_adapters and not layer.merged:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                if not is_low_rank(layer, name):
                    raise TypeError("the head's adapter is more than a product of two matrices")
                dropped = layer.lora_dropout[name](hidden)
                columns.append(layer.lora_A[name](dropped.to(layer.lora_A[name].weight.dtype)))
                blocks.append(layer.lora_B[name].weight * layer.scaling[name])
    if len(columns) == 1:
        return hidden, base.weight, base.bias
    return (
        torch.cat([c.to(hidden.dtype) for c in columns], dim=1),
        torch.cat([b.to(base.weight.dtype) for b in blocks], dim=1),
        base.bias,
    )


def _plain(head: Any) -> Any:
    if not is_plain(head):
        raise TypeError(f"the head is a {type(head).__name__} of {head.weight.dtype}")
    return head
