"""Log-probabilities of completion tokens from hidden states, without a `[T, vocabulary]` tensor.

The vocabulary is walked in chunks with a running maximum and sum, as in online softmax
(Milakov & Gimelshein 2018). With a frozen head the gradient with respect to the hidden states is
formed in the same walk: d log p(y) / d logits = onehot(y) - softmax, which does not depend on what
comes after it but for one factor a token, so backward is a single multiplication. With a
trainable head backward walks the vocabulary once more; it computes the logits again, but for those
that a buffer of fixed size could keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from penchant.models import linear

if TYPE_CHECKING:
    from torch import Tensor

Also = Literal["collisions", "entropy"] | None
"""Of a distribution, in nats: the log of the probability that two draws agree, log sum_v p(v)^2;
or its entropy."""

# Elements of one chunk of logits. On a CPU 4 MiB in fp32: smaller is no faster, larger only larger.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
ROWS_AT_ONCE = 1024
# What a trainable head may keep of its exponentials for backward, however long the batch is.
KEPT_ELEMENTS = 1 << 25


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What is done to logits: `softcap * tanh(scale * logits / softcap) / temperature`.

    Gemma 2 caps, Cohere multiplies, Granite divides; the temperature is that of sampling.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read from a transformers configuration."""
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform in place, `[rows, chunk]`."""
        if self.softcap is None:
            factor = self.scale / self.temperature
            return logits if factor == 1.0 else logits.mul_(factor)
        capped = logits.mul_(self.scale / self.softcap).tanh_()
        return capped.mul_(self.softcap / self.temperature)

    def derivative(self, transformed: Tensor) -> Tensor | float:
        """d transformed / d raw, from the transformed logits."""
        factor = self.scale / self.temperature
        if self.softcap is None:
            return factor
        return factor * (1 - (transformed * (self.temperature / self.softcap)) ** 2)


def completion_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform = LogitTransform(),
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
    function = _TrainableHead if trainable else _FrozenHead
    logprobs, second = function.apply(hidden, weight, bias, targets, transform, also)
    return torch.stack([logprobs, second]) if also else logprobs


class _Head:
    """A head's weights in the dtype of the products, walked in chunks of the vocabulary."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, t: LogitTransform):
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        self.accumulate = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.weight, self.bias, self.transform = weight, bias, t
        rows = min(len(hidden), ROWS_AT_ONCE) or 1
        self.width = max(1024, CHUNK_ELEMENTS.get(device, 1 << 24) // rows)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, len(self.weight), self.width):
            yield first, self.weight[first : first + self.width].to(self.dtype)

    def logits(self, hidden: Tensor, first: int, chunk: Tensor) -> Tensor:
        """`[rows, chunk]`, transformed, in the accumulation dtype."""
        logits = product(hidden, chunk.t(), self.accumulate)
        if self.bias is not None:
            logits += self.bias[first : first + len(chunk)]
        return self.transform.apply_(logits)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` in `dtype`, accumulated and returned without rounding to half where CUDA can."""
    if a.dtype == dtype:
        return linear.product(a, b.t())
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


def set_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total = a @ b`, without a temporary where the dtypes allow it."""
    if total.dtype == a.dtype:
        torch.mm(a, b, out=total)
    else:
        total.copy_(product(a, b, total.dtype))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b`, without a temporary where the dtypes allow it."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += product(a, b, total.dtype)


class _Walk:
    """One pass over the vocabulary for some rows: online softmax.

    With `direction` also the gradient of the log-probs. `second` is what `also` asks for. `kept`
    receives each chunk of exponentials and the maximum `[rows]` they are relative to.
    """

    def __init__(
        self,
        head: _Head,
        hidden: Tensor,
        targets: Tensor,
        *,
        direction: bool = False,
        also: Also = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        def fill(value: float) -> Tensor:
            return hidden.new_full((len(hidden),), value, dtype=head.accumulate)

        hidden = hidden.to(head.dtype)
        maximum, total, target_logit = fill(-torch.inf), fill(0.0), fill(0.0)
        squares, spread = fill(0.0), fill(0.0)
        mean = hidden.new_zeros(hidden.shape, dtype=head.accumulate) if direction else None
        for first, chunk in head.chunks():
            logits = head.logits(hidden, first, chunk)  # [rows, chunk]
            local = targets - first
            here = (local >= 0) & (local < len(chunk))
            picked = logits.gather(1, local.clamp(0, len(chunk) - 1).unsqueeze(1)).squeeze(1)
            target_logit = torch.where(here, picked, target_logit)
            slope = head.transform.derivative(logits)
            new_maximum = torch.maximum(maximum, logits.amax(1))
            correction = (maximum - new_maximum).exp_()
            below = logits.sub_(new_maximum.unsqueeze(1))
            weights = below.exp() if also == "entropy" else below.exp_()
            if also == "entropy":  # sum of weight * (logit - maximum), moved to the new maximum
                drop = torch.where(total > 0, maximum - new_maximum, 0.0)
                spread = correction * (spread + total * drop)
                spread += torch.linalg.vecdot(weights, below)
            total = total * correction + weights.sum(1)
            if also == "collisions":
                squares = squares * correction**2 + weights.square().sum(1)
            maximum = new_maximum
            if kept is not None:
                kept.append((weights, maximum))
            if mean is not None:
                if isinstance(slope, torch.Tensor):
                    weights *= slope
                mean.mul_(correction.unsqueeze(1))
                mean += product(weights.to(head.dtype), chunk, head.accumulate)
        self.logsumexp = maximum + total.log()
        self.logprobs = target_logit - self.logsumexp
        if also == "entropy":
            self.second = total.log() - spread / total
        else:
            self.second = squares.log() - 2 * total.log()  # -inf unless asked for
        if mean is not None:
            # d log p(target) / d hidden = slope(target) W[target] - sum_v p(v) slope(v) W[v]
            slope = head.transform.derivative(target_logit)
            mean /= total.unsqueeze(1)
            own = head.weight[targets].to(head.accumulate)
            if isinstance(slope, torch.Tensor):
                self.direction = own * slope.unsqueeze(1) - mean
            else:
                self.direction = (own - mean).mul_(slope) if slope != 1.0 else own - mean


def _row_chunks(count: int) -> Iterator[slice]:
    for first in range(0, count, ROWS_AT_ONCE):
        yield slice(first, min(first + ROWS_AT_ONCE, count))


class _FrozenHead(torch.autograd.Function):
    """Only the hidden states are trained: their gradient is formed during forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        also: Also,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, transform)
        logprobs = hidden.new_empty(len(hidden), dtype=head.accumulate)
        second = torch.empty_like(logprobs)
        directions = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows in _row_chunks(len(hidden)):
            walk = _Walk(
                head,
                hidden[rows],
                targets[rows],
                direction=directions is not None,
                also=also,
            )
            logprobs[rows], second[rows] = walk.logprobs, walk.second
            if directions is not None:
                directions[rows] = walk.direction
        ctx.save_for_backward(directions)
        ctx.mark_non_differentiable(second)
        return logprobs, second

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (directions,) = ctx.saved_tensors
        return (directions * grad.unsqueeze(1).to(directions.dtype), *[None] * 5)


class _TrainableHead(torch.autograd.Function):
    """The head is trained too: keep the log-sum-exp and recompute the chunks in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        also: Also,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, transform)
        logprobs = hidden.new_empty(len(hidden), dtype=head.accumulate)
        logsumexp, second = torch.empty_like(logprobs), torch.empty_like(logprobs)
        keeps = transform.softcap is None and len(hidden) * len(weight) <= KEPT_ELEMENTS
        kept: list[tuple[Tensor, Tensor]] | None = [] if keeps else None
        for rows in _row_chunks(len(hidden)):
            walk = _Walk(head, hidden[rows], targets[rows], also=also, kept=kept)
            logprobs[rows], logsumexp[rows] = walk.logprobs, walk.logsumexp
            second[rows] = walk.second
        ctx.head, ctx.has_bias, ctx.kept = head, bias is not None, kept
        ctx.save_for_backward(hidden, targets, logsumexp)
        ctx.mark_non_differentiable(second)
        return logprobs, second

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, logsumexp = ctx.saved_tensors
        head, kept = ctx.head, iter(ctx.kept or ())
        grad = grad.to(head.accumulate)
        d_hidden = torch.zeros_like(hidden, dtype=head.accumulate)
        d_weight = torch.empty_like(head.weight, dtype=head.accumulate)
        d_bias = d_weight.new_zeros(len(head.weight)) if ctx.has_bias else None
        for rows in _row_chunks(len(hidden)):
            inputs, g = hidden[rows].to(head.dtype), grad[rows].unsqueeze(1)
            for first, chunk in head.chunks():
                if ctx.kept is None:
                    logits = head.logits(inputs, first, chunk)
                    slope = head.transform.derivative(logits)
                    d_logits = logits.sub_(logsumexp[rows].unsqueeze(1)).exp_().mul_(-g)
                else:
                    exponentials, maximum = next(kept)
                    slope = head.transform.scale / head.transform.temperature
                    factor = (maximum - logsumexp[rows]).exp().unsqueeze(1) * -g
                    d_logits = exponentials * factor
                local = targets[rows] - first
                here = ((local >= 0) & (local < len(chunk))).nonzero().squeeze(1)
                d_logits[here, local[here]] += g[here, 0]
                if isinstance(slope, torch.Tensor) or slope != 1.0:
                    d_logits *= slope
                vocabulary = slice(first, first + len(chunk))
                if d_bias is not None:
                    d_bias[vocabulary] += d_logits.sum(0)
                d_logits = d_logits.to(head.dtype)
                d_hidden[rows] += product(d_logits, chunk, head.accumulate)
                # The first rows write, so that nothing has to be zeroed before.
                combine = set_product if rows.start == 0 else add_product
                combine(d_weight[vocabulary], d_logits.t(), inputs)
        return (
            d_hidden.to(hidden.dtype),
            d_weight.to(head.weight.dtype),
            None if d_bias is None else d_bias.to(head.weight.dtype),
            None,
            None,
            None,
        )


class Comparison(NamedTuple):
    """Two models on the same completion tokens; every tensor is `[N]`, in nats."""

    logprobs: Tensor
    ref_logprobs: Tensor
    kl: Tensor
    """KL(policy || reference) over the whole vocabulary, at each position."""
    entropy: Tensor
    """Of the policy."""


@torch.no_grad()
def compare_heads(
    policy: tuple[Tensor, Tensor, Tensor | None],
    reference: tuple[Tensor, Tensor, Tensor | None],
    targets: Tensor,
    *,
    transform: LogitTransform = LogitTransform(),
    ref_transform: LogitTransform | None = None,
) -> Comparison:
    """Exact token-level KL, entropy and log-probs without `[N, V]` logits.

    Args:
        policy, reference: hidden states `[N, H]`, head `[V, H]` and bias of each.
        targets: `[N]`, token ids.
        transform: what the policy does to its logits.
        ref_transform: what the reference does; the same unless given.
    """
    heads = [_Head(*policy, transform), _Head(*reference, ref_transform or transform)]
    parts = [
        _compare_rows(heads, policy[0][rows], reference[0][rows], targets[rows])
        for rows in _row_chunks(len(targets))
    ]
    return Comparison(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compare_rows(heads: list[_Head], p: Tensor, q: Tensor, targets: Tensor) -> Comparison:
    walks = [_Walk(head, hidden, targets) for head, hidden in zip(heads, (p, q), strict=True)]
    p, q = p.to(heads[0].dtype), q.to(heads[1].dtype)
    cross, own = torch.zeros_like(walks[0].logsumexp), torch.zeros_like(walks[0].logsumexp)
    for (first, chunk), (_, ref_chunk) in zip(heads[0].chunks(), heads[1].chunks(), strict=True):
        log_p = heads[0].logits(p, first, chunk).sub_(walks[0].logsumexp.unsqueeze(1))
        log_q = heads[1].logits(q, first, ref_chunk).sub_(walks[1].logsumexp.unsqueeze(1))
        probability = log_p.exp()
        own += (probability * log_p).sum(1)
        cross += (probability * log_q).sum(1)
    return Comparison(walks[0].logprobs, walks[1].logprobs, own - cross, -own)
