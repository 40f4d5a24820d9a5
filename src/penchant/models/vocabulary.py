"""A walk over the vocabulary in chunks: what is asked of each distribution, without its logits.

The walk keeps a running maximum and sum, as in online softmax (Milakov & Gimelshein 2018).
In the comments N is the number of tokens scored, R a block of them, H the size of a hidden state,
V the vocabulary and C a chunk of it.
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
        """Transform in place, `[R, C]`."""
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


AS_IS = LogitTransform()
"""Logits as the head gives them."""


class Head:
    """A head's weights in the dtype of the products, walked in chunks of the vocabulary."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, t: LogitTransform):
        device = hidden.device.type
        self.dtype, self.accumulate = product_dtypes(device, weight)
        self.weight, self.bias, self.transform = weight, bias, t
        # So wide that a chunk of logits has the same size for few rows as for many.
        rows = min(len(hidden), ROWS_AT_ONCE) or 1
        self.width = max(1024, CHUNK_ELEMENTS.get(device, 1 << 24) // rows)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """The first token of each chunk, and its weights `[C, H]` in the dtype of the products."""
        for first in range(0, len(self.weight), self.width):
            yield first, self.weight[first : first + self.width].to(self.dtype)

    def blocks(self, count: int) -> Iterator[tuple[int, Tensor, slice]]:
        """Chunks with blocks of `count` rows, each with each: `first`, `[C, H]`, rows.

        Where weights are rounded for the products, all rows meet a chunk before the next one is
        rounded; otherwise a block of rows meets all chunks, and its sums stay near the processor.
        """
        if self.weight.dtype != self.dtype:
            for first, chunk in self.chunks():
                for rows in row_blocks(count):
                    yield first, chunk, rows
        else:
            for rows in row_blocks(count):
                for first, chunk in self.chunks():
                    yield first, chunk, rows

    def logits(self, hidden: Tensor, first: int, chunk: Tensor) -> Tensor:
        """`[R, C]` of hidden states `[R, H]`, transformed, in the accumulation dtype."""
        logits = product(hidden, chunk.t(), self.accumulate)  # [R, C]
        if self.bias is not None:
            logits += self.bias[first : first + len(chunk)]
        return self.transform.apply_(logits)


class Walked(NamedTuple):
    """What one pass over the vocabulary finds, in the accumulation dtype and in nats."""

    logprobs: Tensor
    """`[N]`: of the targets."""
    logsumexp: Tensor
    """`[N]`: of the transformed logits."""
    second: Tensor
    """`[N]`: what `also` asks for."""
    direction: Tensor | None
    """`[N, H]`, in the dtype of the hidden states: d logprobs / d hidden, where it is wanted."""


def walk_vocabulary(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    direction: bool = False,
    also: Also = None,
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> Walked:
    """Take log-probs, and what else is asked for, in one pass over the vocabulary.

    Args:
        head: `[V, H]`.
        hidden: `[N, H]`, taken through the vocabulary in the order of `Head.blocks`.
        targets: `[N]`.
        direction: also form the gradient of the log-probs with respect to the hidden states.
        also: what else of each row's distribution.
        kept: receives the exponentials `[R, C]` of each chunk and the maximum `[R]` that they are
            relative to, in the order of the walk.
    """
    # Every result is allocated once and filled: joining blocks would hold the direction twice.
    logprobs = hidden.new_empty(len(hidden), dtype=head.accumulate)  # [N]
    logsumexp, second = torch.empty_like(logprobs), torch.empty_like(logprobs)  # [N] each
    directions = torch.empty_like(hidden) if direction else None  # [N, H]
    walks: dict[int, _Walk] = {}
    for first, chunk, rows in head.blocks(len(hidden)):
        if first == 0:
            walks[rows.start] = _Walk(head, hidden[rows], targets[rows], direction, also)
        walk = walks[rows.start]
        walk.meet(first, chunk, kept)
        if first + len(chunk) == len(head.weight):
            block = walks.pop(rows.start).found()
            logprobs[rows], logsumexp[rows], second[rows] = block[:3]
            if directions is not None and block.direction is not None:
                directions[rows] = block.direction
    return Walked(logprobs, logsumexp, second, directions)


def row_blocks(count: int) -> Iterator[slice]:
    """Blocks of rows, so few that a chunk of their logits stays small."""
    for first in range(0, count, ROWS_AT_ONCE):
        yield slice(first, min(first + ROWS_AT_ONCE, count))


class _Walk:
    """Online softmax over the chunks of the vocabulary, for R rows of hidden states `[R, H]`.

    Every running sum is relative to the largest logit so far. Where a chunk has a larger one, the
    sums are first multiplied by exp(old maximum - new maximum), so that no exponential overflows.
    """

    def __init__(
        self, head: Head, hidden: Tensor, targets: Tensor, direction: bool, also: Also
    ) -> None:
        def fill(value: float) -> Tensor:
            return hidden.new_full((len(hidden),), value, dtype=head.accumulate)

        self.head, self.targets, self.also = head, targets, also
        self.hidden = hidden.to(head.dtype)
        self.maximum, self.total = fill(-torch.inf), fill(0.0)  # [R] each
        self.target_logit, self.squares, self.spread = fill(0.0), fill(0.0), fill(0.0)  # [R] each
        shape = hidden.shape
        self.mean = hidden.new_zeros(shape, dtype=head.accumulate) if direction else None  # [R, H]

    def meet(self, first: int, chunk: Tensor, kept: list[tuple[Tensor, Tensor]] | None) -> None:
        """Take in a chunk of weights `[C, H]`, whose first token is `first`."""
        head, also = self.head, self.also
        logits = head.logits(self.hidden, first, chunk)  # [R, C]
        self.target_logit = pick(logits, self.targets - first, self.target_logit)
        # The derivative is taken before the logits are overwritten below.
        slope = head.transform.derivative(logits)  # [R, C], or one number without soft-capping
        maximum = torch.maximum(self.maximum, logits.amax(1))  # [R]
        correction = (self.maximum - maximum).exp_()  # [R]; 0 at the first chunk
        below = logits.sub_(maximum.unsqueeze(1))  # [R, C], in place of the logits
        # Only the entropy needs the differences again: all else overwrites them.
        weights = below.exp() if also == "entropy" else below.exp_()  # [R, C]
        if also == "entropy":
            # spread = sum of weight * (logit - maximum). With a new maximum every difference
            # falls by the same amount; at the first chunk there is none, and -inf * 0 is no number.
            drop = torch.where(self.total > 0, self.maximum - maximum, 0.0)  # [R]
            self.spread = correction * (self.spread + self.total * drop)
            self.spread += torch.linalg.vecdot(weights, below)  # [R]
        self.total = self.total * correction + weights.sum(1)  # [R]
        if also == "collisions":
            self.squares = self.squares * correction**2 + weights.square().sum(1)  # [R]
        self.maximum = maximum
        if kept is not None:
            kept.append((weights, maximum))
        if self.mean is not None:
            if isinstance(slope, torch.Tensor):
                weights *= slope  # nothing reads the weights after this, and none is kept here
            self.mean.mul_(correction.unsqueeze(1))
            self.mean += product(weights.to(head.dtype), chunk, head.accumulate)  # [R, H]

    def found(self) -> Walked:
        """Of these rows, once they have met every chunk."""
        logsumexp = self.maximum + self.total.log()  # [R]
        second = self.squares.log() - 2 * self.total.log()  # [R]; -inf unless collisions are asked
        if self.also == "entropy":
            second = self.total.log() - self.spread / self.total  # [R]
        mean = self.mean
        if mean is not None:
            mean = mean.div_(self.total.unsqueeze(1))
            mean = _direction(self.head, self.targets, self.target_logit, mean)
        return Walked(self.target_logit - logsumexp, logsumexp, second, mean)


def pick(logits: Tensor, local: Tensor, otherwise: Tensor) -> Tensor:
    """`[R]`: the logit of each row's target where this chunk `[R, C]` holds it.

    All rows are gathered, at a clamped index: a selection by mask would wait for the GPU.
    """
    width = logits.shape[1]
    here = (local >= 0) & (local < width)  # [R]
    picked = logits.gather(1, local.clamp(0, width - 1).unsqueeze(1)).squeeze(1)  # [R]
    return torch.where(here, picked, otherwise)


def _direction(head: Head, targets: Tensor, target_logit: Tensor, mean: Tensor) -> Tensor:
    """`[R, H]`: d log p(target) / d hidden = slope(target) W[target] - sum_v p(v) slope(v) W[v].

    `mean` is the sum. Without soft-capping the slope is one number and `mean` does not have it yet.
    """
    slope = head.transform.derivative(target_logit)
    own = head.weight[targets].to(head.accumulate)  # [R, H]
    if isinstance(slope, torch.Tensor):
        return own * slope.unsqueeze(1) - mean
    return (own - mean).mul_(slope) if slope != 1.0 else own - mean


def product_dtypes(device: str, weight: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The dtype in which a head's weights are multiplied, and that of what comes out."""
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    return dtype, torch.float64 if dtype == torch.float64 else torch.float32


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` in `dtype`: factors may be in half precision, sums and result are not rounded to it.

    A bf16 logit of 20 would be off by up to 0.06 nats.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype != dtype and a.is_cuda:
            return torch.mm(a, b, out_dtype=dtype)
        return linear.product(a.to(dtype), b.t().to(dtype), vocabulary=True)
