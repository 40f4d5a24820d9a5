"""What a run would take in another way: with LoRA, in bf16, in codes, on several processes."""

from __future__ import annotations

from dataclasses import replace

from penchant.models.footprint import ACTIVATION_BYTES, Sizes, state_bytes

# Bytes of a weight in codes, scales included. NF4: half a byte, a byte for each 64 weights as
# their scale, and 4 for each 256 of those; 8 bits: the scales of rows do not count.
CODE_BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}


def with_lora(sizes: Sizes, rank: int) -> Sizes:
    """The same run with an adapter of a rank in place of all weights."""
    kind = "half" if sizes.half else "fp32"
    adapter = 4.0 * sizes.width * rank
    return replace(
        sizes,
        weights=sizes.weights + adapter,
        trained=adapter,
        update=0.0,
        reference=0.0,
        fixed=0.0,
        by_token=sizes.by_token * ACTIVATION_BYTES[kind, True] / ACTIVATION_BYTES[kind, False],
        head_trained=False,
    )


def in_bf16(sizes: Sizes, optim: str) -> Sizes:
    """The same run on all weights with these, their gradients and their moments in bf16."""
    both = [state_bytes(optim, 1.0, 0.0, half=half) for half in (False, True)]
    share = 2 * both[1] / both[0] if both[0] else 1.0
    return replace(
        sizes,
        weights=sizes.weights - sizes.trained / 2,
        trained=sizes.trained / 2,
        matrix_bytes=sizes.matrix_bytes / 2,
        fixed=0.0,
        state=sizes.state * share,
    )


def quantised(sizes: Sizes, kind: str) -> Sizes:
    """The same run with the frozen matrices under its adapter in codes, the rest in fp32."""
    matrices = sizes.matrices * sizes.matrix_bytes
    others = (sizes.weights - sizes.trained - matrices) * 4 / sizes.matrix_bytes
    codes = sizes.matrices * CODE_BYTES[kind]
    return replace(sizes, weights=sizes.trained + others + codes, matrix_bytes=CODE_BYTES[kind])


def divided(sizes: Sizes, processes: int, *, offload: bool = False) -> Sizes:
    """What one of several processes holds that divide the weights among them (FSDP2).

    Beside its part it has the embeddings and heads whole for a pass, and two layers. With
    `offload` the part is in main memory; where that is the device's own, nothing is saved.
    """
    matrices = sizes.matrices * sizes.matrix_bytes
    held = 0.0 if offload and sizes.device != "cpu" else 1 / processes
    whole = max(0.0, sizes.weights - matrices) + 2 * matrices / max(1, sizes.num_layers)
    return replace(
        sizes,
        weights=sizes.weights * held,
        trained=sizes.trained * held,
        reference=sizes.reference * held,
        whole=whole,
    )
