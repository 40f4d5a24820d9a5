"""Tokens drawn from logits: one random number for each, which the seed decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from penchant.models.distribution import filtered

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.rl.sampling.base import Sampling


def row_uniforms(rows: Sequence[tuple[int, int]], length: int, seed: int) -> Tensor:
    """`[rows, length]`, random in [0, 1): each row by the seed, its prompt and its answer alone.

    They are made on the CPU, so that no device draws others.
    """
    generator = torch.Generator()
    drawn = torch.empty(len(rows), length, dtype=torch.float64)
    for row, (prompt, answer) in zip(drawn, rows, strict=True):
        generator.manual_seed(random.Random(f"{seed} {prompt} {answer}").getrandbits(63))
        row.uniform_(generator=generator)
    return drawn


def draw_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob, `[rows]` each.

    Args:
        logits: `[rows, V]`, as the model gives them.
        sampling: with temperature 0, the likeliest token, and its log-prob at temperature 1.
        uniforms: `[rows]`, random in [0, 1).
    """
    return draw_from(log_distribution(logits, sampling), sampling, uniforms)


def log_distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """`[rows, V]`: log-probs of every token as it is sampled, -inf of what a filter drops."""
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    kept = filtered(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    return kept.log_softmax(-1)


def draw_from(every: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """As `draw_tokens`, from log-probs `[rows, V]`."""
    greedy = sampling.temperature == 0
    tokens = every.argmax(-1) if greedy else _drawn(every.exp(), uniforms)
    return tokens, every.gather(1, tokens.unsqueeze(1)).squeeze(1)


def _drawn(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One index a row, `[rows]`: where the running sum `[rows, V]` passes its random number.

    `torch.multinomial` draws a number for every token of the vocabulary instead of one a row.
    """
    # In fp32 the rounding of a sum over a large vocabulary would move what is rare.
    dtype = torch.float32 if probabilities.device.type == "mps" else torch.float64
    mass = probabilities.cumsum(-1, dtype=dtype)
    where = uniforms.to(mass.device, dtype).unsqueeze(1) * mass[:, -1:]
    tokens = torch.searchsorted(mass, where, right=True).squeeze(1)
    return tokens.clamp(max=probabilities.shape[-1] - 1)  # a product that was rounded up
