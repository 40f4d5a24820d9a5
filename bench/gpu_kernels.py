"""Attention kernels and heads of the trial on a GPU: milliseconds and peak memory.

python bench/gpu_kernels.py SETTINGS     started by bench/gpu.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import gpu_rows
from gpu_rows import LLAMA, Part, attempt, milliseconds, row
from penchant.data.batch import Group, pack
from penchant.models import attention_cpu, attention_gpu
from penchant.models.logprobs import completion_logprobs
from penchant.models.segments import FULL, LayerRule, Reach, SegmentTable

# Lengths of prompt, chosen and rejected of a micro-batch: four pairs, 4,000 positions.
PAIRS = ((420, 260, 340), (160, 120, 520), (610, 90, 150), (330, 480, 520))
# Rows that predict completion tokens.
ROWS = 4096


def main() -> None:
    part = Part.from_argument()
    for size in ("tiny",) if part.tiny else ("1b", "8b"):
        attention(part, size)
        heads(part, size)


def attention(part: Part, size: str) -> None:
    """Each kernel over the same packed row, forward and backward."""
    shape, dtype = LLAMA[size], torch.bfloat16 if part.device == "cuda" else torch.float32
    scale = 8 if part.tiny else 1
    groups = [
        Group([1] * (p // scale), ([2] * (c // scale), [3] * (r // scale))) for p, c, r in PAIRS
    ]
    batch = pack(groups)
    assert batch.segments is not None
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    dim = shape["hidden_size"] // heads
    length = batch.num_tokens
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, n, length, dim, generator=generator).to(part.device, dtype).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    )
    expected: torch.Tensor | None = None
    for reach in (FULL, Reach(window=512 // scale)):
        for kernel in ("sdpa", "flex", "varlen") if part.device == "cuda" else ("sdpa",):
            name = f"attention {kernel}, {size}, {'full' if reach is FULL else 'window'}"
            if name in part.done and kernel != "sdpa":  # which the others are compared with
                continue
            with attempt(name):
                table, rule = SegmentTable(batch.segments, kernel), LayerRule(reach, dim**-0.5)
                own: Any = attention_cpu.attend if part.device == "cpu" else None
                call = partial(own or getattr(attention_gpu, kernel), q, k, v, table, rule)
                out = call()
                if kernel == "sdpa":
                    expected = out.detach().float()
                assert expected is not None
                figures = timed(part, call, [q, k, v])
                difference = float((out.detach().float() - expected).abs().max())
                row(name, positions=length, **figures, difference_from_sdpa=difference)


def heads(part: Part, size: str) -> None:
    """Log-probs of completion tokens: ours, liger-kernel's where installed, and plain."""
    shape, dtype = LLAMA[size], torch.bfloat16 if part.device == "cuda" else torch.float32
    rows, width, vocabulary = 64 if part.tiny else ROWS, shape["hidden_size"], shape["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, width, generator=generator) * 0.5
    matrix = torch.randn(vocabulary, width, generator=generator) * width**-0.5
    targets = torch.randint(0, vocabulary, (rows,), generator=generator).to(part.device)
    hidden = states.to(part.device, dtype).requires_grad_()
    expected: torch.Tensor | None = None
    for kind, trained in (("frozen", False), ("trained", True)):
        # A head that is trained has fp32 weights, which autocast rounds.
        weight = matrix.to(part.device, torch.float32 if trained else dtype)
        weight.requires_grad_(trained)
        for name, function in HEADS.items():
            title = f"head {name}, {size}, {kind}"
            if title in part.done and name != "ours":
                continue
            with attempt(title):
                call = partial(function, hidden, weight, targets)
                with torch.autocast(part.device, torch.bfloat16, enabled=part.device == "cuda"):
                    out = call()
                    if name == "ours":
                        expected = out.detach()
                    assert expected is not None
                    figures = timed(part, call, [hidden, *([weight] if trained else [])])
                difference = float((out.detach() - expected).abs().max())
                row(title, rows=rows, **figures, difference_from_ours=difference)


def ours(hidden: Any, weight: Any, targets: Any) -> torch.Tensor:
    return completion_logprobs(hidden, weight, targets)


def plain(hidden: Any, weight: Any, targets: Any) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float()
    return logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def liger(hidden: Any, weight: Any, targets: Any) -> torch.Tensor:
    """Its kernel for Hopper where that is installed, otherwise its fallback of torch operations."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Function,
    )

    return -Function.apply(hidden, weight.to(hidden.dtype), targets)


HEADS: dict[str, Callable[..., torch.Tensor]] = {"ours": ours, "plain": plain, "liger": liger}


def timed(part: Part, call: Callable[[], Any], inputs: list[Any]) -> dict[str, float]:
    """Milliseconds of forward alone and with backward, and the peak of the latter."""
    repeats = 1 if part.tiny else 10

    def both() -> None:
        torch.autograd.grad(call().float().sum(), inputs)

    with torch.no_grad():
        forward = milliseconds(call, part.device, repeats)
    figures = {"forward_ms": forward, "both_ms": milliseconds(both, part.device, repeats)}
    if part.device == "cuda":
        gpu_rows.release()
        before = torch.cuda.memory_allocated()
        both()
        figures["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    return figures


if __name__ == "__main__":
    main()
