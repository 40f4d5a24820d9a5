"""liger-kernel's fused head as another way to the log-probs of a head that is trained, on Hopper.

`LigerFusedLinearScaledCrossEntropyFunction` (liger-kernel 0.8) gives the negative log-likelihood
and the entropy of every token. A kernel of its own it has for compute capability 9.0 and bf16
alone; elsewhere it falls back to torch operations that round logits to bf16, which the walk here
does not. It always forms the gradient of the weights, so that it can only pay where these are
trained.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from penchant.core.timing import seconds_of
from penchant.models.linear import PLAIN_TENSORS
from penchant.models.vocabulary import Also, LogitTransform

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("penchant")

# It waits for the device to look whether each target is a token: whoever calls it here knows that.
UNCHECKED = "LIGER_SCALED_CE_SM90_VALIDATE_TARGETS"
CAPABILITY = (9, 0)
# Rows that the two ways are compared and timed on: those of the first pass, as often as needed.
PROBED = 2048
# It is taken where log-probs agree to so many nats per token on average, as bf16 rounds them, and
# entropies, which it gives in bf16, and each gradient to this share of its norm.
NATS, ENTROPY_NATS, GRADIENT = 2e-3, 2e-2, 2e-2

Way = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""From hidden states, weight and targets to log-probs `[N]`, or with entropies `[2, N]`."""


class Tried(NamedTuple):
    """What one way has given, and how long it took, forward and backward."""

    found: Tensor
    """`[N]` or `[2, N]`."""
    gradients: tuple[Tensor, ...]
    """Of the hidden states and of the weight."""
    seconds: float


def serves(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> bool:
    """Whether its kernel computes this head: what is trained, in which dtype, on which device."""
    return (
        hidden.is_cuda
        and weight.requires_grad
        and type(weight) in PLAIN_TENSORS
        and bias is None
        and transform.softcap is None
        and transform.scale > 0
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and importlib.util.find_spec("liger_kernel") is not None
        and torch.cuda.get_device_capability(hidden.device) == CAPABILITY
    )


def liger_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    transform: LogitTransform,
    also: Also,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """As `completion_logprobs`; `also` may be the entropy or nothing.

    Args:
        hidden: `[N, H]`; weight: `[V, H]`; targets: `[N]`.
        transform: without a soft cap.
        also: what else of each row's distribution.
        dtype: of the products.
    """
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (  # type: ignore[import-not-found,unused-ignore]
        LigerFusedLinearScaledCrossEntropyFunction as Fused,
    )

    os.environ.setdefault(UNCHECKED, "0")
    temperature = transform.temperature / transform.scale
    rounded = hidden.to(dtype), weight.to(dtype)
    found = Fused.apply(*rounded, targets, temperature, return_entropy=also == "entropy")
    if also is None:
        return -found
    nll, entropy = found
    return torch.stack([-nll, entropy.detach().to(nll.dtype)])


def chosen(
    own: Way,
    other: Way,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    asked: tuple[LogitTransform, Also],
) -> bool:
    """Whether the other way agrees with our own on a head and is quicker; measured once a kind.

    Args:
        own, other: the two ways.
        hidden: `[N, H]` of a pass; weight: `[V, H]`; targets: `[N]`.
        asked: what both ways do to logits, and what they give beside log-probs: of another kind
            the two are compared again.
    """
    kind = (*weight.shape, weight.dtype, *asked)
    if kind not in _known():
        rows = torch.arange(PROBED, device=hidden.device) % len(hidden)
        inputs = hidden.detach()[rows], weight.detach(), targets[rows]
        one, two = _tried(own, *inputs), _tried(other, *inputs)
        times = f"{two.seconds * 1e3:.2f} ms beside {one.seconds * 1e3:.2f} ms here"
        refusal = disagreement(one, two) or (times if two.seconds >= one.seconds else "")
        said = f"ours, not liger-kernel's: {refusal}" if refusal else f"liger-kernel's: {times}"
        logger.info("log-probs under the head are %s", said)
        _known()[kind] = not refusal
    return _known()[kind]


@cache
def _known() -> dict[tuple[object, ...], bool]:
    return {}


def _tried(way: Way, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tried:
    """One way, with gradients that nothing else sees."""
    inputs = hidden.detach().requires_grad_(), weight.detach().requires_grad_()

    def once() -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            found = way(*inputs, targets)
            logprobs = found if found.ndim == 1 else found[0]
            return found.detach(), torch.autograd.grad(logprobs.sum(), inputs)

    once()  # compiles what is compiled
    seconds, (found, gradients) = seconds_of(once, hidden.device)
    return Tried(found, gradients, seconds)


def disagreement(own: Tried, other: Tried) -> str:
    """What two ways to the same head differ by, where that is more than rounding."""
    difference = (own.found - other.found).abs().reshape(-1, own.found.shape[-1]).mean(1).tolist()
    for name, limit, found in zip(("log-probs", "entropies"), (NATS, ENTROPY_NATS), difference,
                                  strict=False):  # fmt: skip
        if not found <= limit:  # also true for NaN
            return f"{name} differ by {found:.2g} nats per token"
    for name, one, two in zip(("hidden states", "weight"), own.gradients, other.gradients,
                              strict=True):  # fmt: skip
        share = float((one.float() - two.float()).norm() / one.float().norm().clamp(min=1e-12))
        if not share <= GRADIENT:
            return f"the gradient of the {name} differs by {share:.2g} of its norm"
    return ""
