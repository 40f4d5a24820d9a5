"""Divergence of a trained distribution from a teacher's, over the whole vocabulary, by few rows.

Neither model's logits exist for more than a block of rows at once. In the comments N is the number
of tokens scored, R a block of them, V the vocabulary and H the size of a hidden state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from penchant.models.distribution import transformed
from penchant.models.head_logits import head_logits, rounded
from penchant.models.logprobs import completion_logprobs
from penchant.models.vocabulary import Head, LogitTransform, product

if TYPE_CHECKING:
    from torch import Tensor

# Elements of one block of logits; a handful of blocks of this size exist at once. On a CPU 16 MiB.
ELEMENTS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 25}
# Fewer rows would read the head's weights more often than they multiply by them.
LEAST_ROWS = 64


class Said(NamedTuple):
    """What a model says where tokens are predicted: hidden states `[N, H]`, and their head."""

    hidden: Tensor
    weight: Tensor
    """`[V, H]`."""
    bias: Tensor | None
    transform: LogitTransform
    """What the model does to its logits, and the temperature."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the head knows."""
        return len(self.weight)


class Lesson(NamedTuple):
    """What a teacher says where the tokens of a batch are predicted."""

    said: Said | None
    """Its hidden states under its head; None where it or the policy computes full logits."""
    logits: Tensor | None
    """`[N, V]`, where `said` is None."""
    beta: float

    def logprobs(self, targets: Tensor) -> Tensor:
        """`[N]`: of the targets, under the teacher."""
        if self.said is None:
            assert self.logits is not None
            return self.logits.log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
        hidden, weight, bias, transform = self.said
        return completion_logprobs(hidden, weight, targets, bias=bias, transform=transform)


class Divergence(NamedTuple):
    """A policy beside its teacher, `[N]` each, in nats."""

    divergence: Tensor
    """Differentiable."""
    kl: Tensor
    """KL(policy || teacher), whatever `divergence` is; without gradient, as all that follows."""
    logprobs: Tensor
    """Of the targets, under the policy."""
    entropy: Tensor
    """Of the policy."""


def divergence_of_heads(policy: Said, teacher: Said, targets: Tensor, beta: float) -> Divergence:
    """The generalised Jensen-Shannon divergence at every position, without `[N, V]` logits.

    With m = beta * teacher + (1 - beta) * policy it is
    beta * KL(teacher || m) + (1 - beta) * KL(policy || m); of beta 0 KL(teacher || policy), of
    beta 1 KL(policy || teacher). Agarwal et al. 2023 (https://arxiv.org/abs/2306.13649), Eq. 1.

    Args:
        policy: whose hidden states and head may be trained.
        teacher: without gradient. Where one vocabulary is longer than the other, as one that is
            padded for the hardware, its further tokens are left out.
        targets: `[N]`, token ids.
        beta: the teacher's weight in the mixture.
    """
    size = min(policy.vocabulary, teacher.vocabulary)
    policy, teacher = _first(policy, size), _first(teacher, size)
    trains_head = policy.weight.requires_grad or (
        policy.bias is not None and policy.bias.requires_grad
    )
    if trains_head and torch.is_grad_enabled():
        return _with_trained_head(policy, teacher, targets, beta)
    found = _FrozenHead.apply(policy.hidden, policy, teacher, targets, beta)
    return Divergence(*found)


def divergence_of_logits(
    logits: Tensor, teacher_logits: Tensor, targets: Tensor, beta: float
) -> Divergence:
    """The same from logits `[N, V]` of both, which may be of unlike length.

    Args:
        logits: differentiable; teacher_logits: without gradient.
        targets: `[N]`, token ids.
        beta: the teacher's weight in the mixture.
    """
    size = min(logits.shape[1], teacher_logits.shape[1])
    return Divergence(
        *_LogitDivergence.apply(logits[:, :size], teacher_logits[:, :size], targets, beta)
    )


def _first(said: Said, size: int) -> Said:
    """Of the first tokens of the vocabulary alone."""
    bias = None if said.bias is None else said.bias[:size]
    return said._replace(weight=said.weight[:size], bias=bias)


class _FrozenHead(torch.autograd.Function):
    """Only the hidden states are trained: their gradient is formed during forward, by blocks.

    A block of both models' logits is there when its divergence is known, so that each head is
    multiplied once, and the gradient costs one product more.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, policy: Said, teacher: Said, targets: Tensor, beta: float
    ) -> tuple[Tensor, ...]:
        direction = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # [N, H]
        own, theirs = _Logits(policy), _Logits(teacher)
        weight, accumulate = own.weight, own.head.accumulate
        found = hidden.new_empty(4, len(hidden), dtype=accumulate)  # [4, N]
        for rows in _blocks(hidden, policy.vocabulary):
            logits = own(hidden[rows])  # [R, V]
            slope = policy.transform.derivative(logits) if direction is not None else 1.0
            terms = _compare(logits, theirs(teacher.hidden[rows]), targets[rows], beta)
            found[:, rows] = torch.stack(terms.found)
            if direction is not None:
                d_logits = terms.gradient().mul_(slope)  # [R, V]
                d_hidden = product(d_logits.to(own.head.dtype), weight, accumulate)  # [R, H]
                direction[rows] = d_hidden.to(direction.dtype)
        ctx.save_for_backward(direction)
        divergence, *others = found.unbind()
        # No views: what a forward returns carries the hooks of sharded weights.
        results = (divergence.clone(), *(one.clone() for one in others))
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors  # [N, H]
        return direction * grad.unsqueeze(1).to(direction.dtype), None, None, None, None


def _with_trained_head(policy: Said, teacher: Said, targets: Tensor, beta: float) -> Divergence:
    """With gradients of the head too: backward computes each block's logits again."""
    theirs = _Logits(teacher)

    def block(hidden: Tensor, teacher_hidden: Tensor, some: Tensor) -> tuple[Tensor, ...]:
        logits = transformed(head_logits(hidden, policy.weight, policy.bias), policy.transform)
        with torch.no_grad():
            teacher_logits = theirs(teacher_hidden)
        found: tuple[Tensor, ...] = _LogitDivergence.apply(logits, teacher_logits, some, beta)
        return found

    parts = [
        checkpoint(
            block, policy.hidden[rows], teacher.hidden[rows], targets[rows], use_reentrant=False
        )
        for rows in _blocks(policy.hidden, policy.vocabulary)
    ]
    return Divergence(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _LogitDivergence(torch.autograd.Function):
    """Of logits `[R, V]` that are there; the gradient is formed during forward."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher_logits: Tensor, targets: Tensor, beta: float
    ) -> tuple[Tensor, ...]:
        terms = _compare(logits.detach().clone(), teacher_logits.detach().clone(), targets, beta)
        ctx.save_for_backward(terms.gradient() if ctx.needs_input_grad[0] else None)
        ctx.mark_non_differentiable(*terms.found[1:])
        return terms.found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors  # [R, V]
        return gradient * grad.unsqueeze(1), None, None, None


class _Terms(NamedTuple):
    """One block: what `Divergence` holds, `[R]` each, and how its gradient is formed `[R, V]`."""

    found: tuple[Tensor, Tensor, Tensor, Tensor]
    gradient: Callable[[], Tensor]


def _compare(logits: Tensor, teacher_logits: Tensor, targets: Tensor, beta: float) -> _Terms:
    """Both `[R, V]`, transformed; they are overwritten."""
    log_p = logits.sub_(logits.logsumexp(1, keepdim=True))  # [R, V]
    log_q = teacher_logits.sub_(teacher_logits.logsumexp(1, keepdim=True))  # [R, V]
    p = log_p.exp()  # [R, V]
    picked = log_p.gather(1, targets.unsqueeze(1)).squeeze(1)  # [R]
    entropy = -torch.linalg.vecdot(p, log_p)  # [R]
    kl = -entropy - torch.linalg.vecdot(p, log_q)  # [R]
    if beta == 0:
        q = log_q.exp()  # [R, V]
        value = torch.linalg.vecdot(q, log_q - log_p)  # [R]
        return _Terms((value, kl, picked, entropy), lambda: p.sub_(q))
    if beta == 1:
        ratio, weight = log_p - log_q, 1.0  # [R, V]
        own, value = kl, kl.clone()  # only one of them is differentiable
    else:
        log_m = torch.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))  # [R, V]
        taught = torch.linalg.vecdot(log_q.exp(), log_q - log_m)  # [R]: KL(teacher || m)
        ratio, weight = log_p - log_m, 1 - beta  # [R, V]
        own = torch.linalg.vecdot(p, ratio)  # [R]: KL(policy || m)
        value = beta * taught + (1 - beta) * own
    # d KL(p || m) / d p(v) = weight * ratio(v) up to a constant, both for a mixture that p moves
    # and for a teacher that it does not; through the softmax the mean of that is taken off.
    return _Terms(
        (value, kl, picked, entropy),
        lambda: ratio.sub_(own.unsqueeze(1)).mul_(p).mul_(weight),
    )


class _Logits:
    """Hidden states `[R, H]` to transformed logits `[R, V]`, by a head that is rounded once."""

    def __init__(self, said: Said) -> None:
        self.head = Head(*said)
        dtypes = (self.head.dtype, self.head.accumulate)
        self.dtypes, self.weight = dtypes, rounded(said.weight.detach(), dtypes)

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.head.logits(rounded(hidden.detach(), self.dtypes), 0, self.weight)


def _blocks(hidden: Tensor, vocabulary: int) -> Iterator[slice]:
    """Blocks of rows, so few that their logits stay small."""
    elements = ELEMENTS_AT_ONCE.get(hidden.device.type, 1 << 24)
    size = max(LEAST_ROWS, elements // vocabulary)
    for first in range(0, len(hidden), size):
        yield slice(first, min(first + size, len(hidden)))
