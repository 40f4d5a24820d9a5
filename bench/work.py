"""How much matrix work a step is, and how fast this machine multiplies matrices."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer


def machine() -> str:
    """The processor or GPU that computes, and what it multiplies with."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    known = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    has = "avx512f" in known.get("flags", "").split()
    return (
        f"{known.get('model name', platform.machine())} (family {known.get('cpu family', '?')}, "
        f"model {known.get('model', '?')}), {'with' if has else 'without'} AVX-512 "
        f"(torch takes {torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}"
    )


def matmul_rate(precision: str) -> float:
    """Floating-point operations a second of a large matrix product; the median of many."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / sorted(seconds)[len(seconds) // 2]


def step_flops(model: str, rows: list[dict[str, str]], mode: str) -> tuple[float, float]:
    """Least matrix work for these rows: with shared prompts, and with a prompt a completion.

    Weights that are multiplied, times tokens, times the passes that each layout needs: the
    policy's and the reference's forward, the policy's backward to activations, and to weights in
    full training. The head counts at completion tokens only. Attention and padding do not count.
    """
    config = AutoConfig.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * (heads * head_dim + 3 * config.intermediate_size)
    body, head = layer * config.num_hidden_layers, config.hidden_size * config.vocab_size
    packed = repeated = predicted = 0
    for row in rows:
        prompt, chosen, rejected = (len(tokenizer(row[k])["input_ids"]) for k in row)
        predicted += chosen + rejected + 2
        packed += prompt + chosen + rejected + 2
        repeated += 2 * prompt + chosen + rejected + 2
    passes = 3 if mode == "lora" else 4
    return tuple(2 * passes * (body * t + head * predicted) for t in (packed, repeated))
