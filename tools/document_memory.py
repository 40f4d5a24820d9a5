"""Write the table of docs/cluster.md: which model fits on which machine, by the forecast's formula.

With --check it only says whether the page is stale, and exits 1 if it is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import marked

from penchant.models.footprint import Load, footprint
from penchant.models.rough_sizes import ModelSize, sizes_of
from penchant.models.ways import divided

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cluster.md"
MARKS = ("<!-- memory: written by tools/document_memory.py -->", "<!-- end memory -->")
GB = 1e9
# Shapes of published models: hidden size, width of the MLP, layers, heads, heads of keys, width of
# a head, vocabulary, whether head and embeddings are one.
SHAPES: dict[str, tuple[int, int, int, int, int, int, int, bool]] = {
    "1B": (2048, 8192, 16, 32, 8, 64, 128_256, True),
    "3B": (3072, 8192, 28, 24, 8, 128, 128_256, True),
    "8B": (4096, 14_336, 32, 32, 8, 128, 128_256, False),
    "14B": (5120, 17_408, 40, 40, 8, 128, 151_936, False),
    "32B": (5120, 25_600, 64, 64, 8, 128, 151_936, False),
    "70B": (8192, 28_672, 80, 64, 8, 128, 128_256, False),
}
# What trains, with the keys of `sizes_of`.
WAYS: dict[str, dict[str, Any]] = {
    "QLoRA": {"lora_r": 16, "half_base": True, "quantization": "4bit"},
    "LoRA": {"lora_r": 16, "half_base": True},
    "all weights": {"lora_r": 0, "half_base": False},
}
# GPUs, and GB of each that a run can have: a tenth is left for the allocator.
MACHINES = {
    "1 x 24 GB": (1, 24), "1 x 80 GB": (1, 80), "2 x 80 GB": (2, 80), "4 x 80 GB": (4, 80),
    "8 x 80 GB": (8, 80),
}  # fmt: skip
USABLE = 0.9
# A pass of four pairs of 512 tokens, half of them answers, layer by layer recomputed.
LOAD = Load(tokens=4096, predicted=2048, checkpointing=True)


def model_size(name: str) -> ModelSize:
    """The sizes of a Llama of these shapes."""
    hidden, inner, layers, heads, kv_heads, head_dim, vocabulary, tied = SHAPES[name]
    queries, keys = heads * head_dim, kv_heads * head_dim
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    matrices = layers * sum(a * b for a, b in shapes)
    ends = vocabulary * hidden * (1 if tied else 2)
    return ModelSize(
        num_parameters=matrices + ends + (2 * layers + 1) * hidden,
        num_layer_parameters=matrices,
        width=layers * sum(a + b for a, b in shapes),
        hidden=hidden,
        num_layers=layers,
        vocabulary=vocabulary,
        context=None,
        scores=False,
    )


def gigabytes(name: str, way: str, gpus: int) -> float:
    """The peak of one GPU, of DPO with its reference in a cache or a switched-off adapter."""
    sizes = sizes_of(
        model_size(name), reference=False, precision="bf16", device="cuda", **WAYS[way]
    )
    return footprint(divided(sizes, gpus) if gpus > 1 else sizes, LOAD).peak / GB


def table() -> str:
    """A row for each model and way, a column for each machine."""
    lines = [
        "| Model | Trains | " + " | ".join(MACHINES) + " |",
        "|---" * (2 + len(MACHINES)) + "|",
    ]
    for name in SHAPES:
        for way in WAYS:
            cells = []
            for gpus, size in MACHINES.values():
                if way == "QLoRA" and gpus > 1:  # codes are not sharded: each GPU holds all
                    needed = gigabytes(name, way, 1)
                else:
                    needed = gigabytes(name, way, gpus)
                cells.append(f"**{needed:.0f}**" if needed <= USABLE * size else f"({needed:.0f})")
            lines.append(f"| {name} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def stale() -> str:
    """The page as it ought to be; empty where it is so."""
    return marked.stale(PAGE, MARKS, table())


if __name__ == "__main__":
    sys.exit(marked.main(PAGE, stale()))
