"""Attention over the packed shared-prompt layout, through transformers' public hook.

Who may attend to whom says `models/segments.py`. Kernels are in `models/attention_cpu.py` and, for
other devices, `models/attention_gpu.py`. The segment table travels to every layer as a keyword
argument of the model's forward, and the layer itself hands over its window, cap and sinks: no model
code is patched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from penchant.models import attention_cpu
from penchant.models.segments import LayerRule, Reach, SegmentTable

if TYPE_CHECKING:
    from torch import Tensor

NAME = "penchant_packed"

# What layers of other kinds hand over: which keys to attend to, and what to add to scores.
UNSERVED = ("indices", "block_indices", "position_bias", "sinks")


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Reach | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: SegmentTable | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend over one packed row.

    Args:
        query: `[1, heads, T, dim]`; key: `[1, kv_heads, T, dim]`; value: `[1, kv_heads, T, dim']`.
        attention_mask: what `layer_reach` made of the layer's kind.
        segments: the row's groups; the model's forward was given it as `segments=`.
        sliding_window: the layer's own word on its window, where no mask was asked for.
        softcap: scores are `softcap * tanh(scores / softcap)` (Gemma 2).
        s_aux: `[heads]`, sinks: a score more in each softmax, without a value (gpt-oss).

    Returns:
        `[1, T, heads, dim']` and None for the attention weights.
    """
    assert query.shape[0] == 1, "a packed batch is one row"
    if dropout:
        # models/selfcheck.py sends such models to the plain layout before they get here.
        raise ValueError("packed attention has no attention dropout")
    if unknown := [name for name in UNSERVED if others.get(name) is not None]:
        raise ValueError(f"packed attention does not know the layer's {', '.join(unknown)}")
    if segments is None:
        raise ValueError(
            f"{type(module).__name__} is not told where the segments of a packed row are"
        )
    if not isinstance(attention_mask, Reach | None):
        raise ValueError(f"{type(module).__name__} makes a mask of its own")
    reach = attention_mask or Reach(window=sliding_window)
    device = query.device.type
    if torch.is_autocast_enabled(device):
        # Rotary embeddings leave fp32 beside half-precision values; own kernels are not autocast.
        half = torch.get_autocast_dtype(device)
        query, key, value = query.to(half), key.to(half), value.to(half)
    if getattr(module, "attn_temperature_tuning", False):
        from penchant.models.places import retuned

        query = retuned(module, query, segments)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    layer = LayerRule(reach, scaling, softcap or None, s_aux)
    if segments.kernel == "sdpa" and device == "cpu":
        return attention_cpu.attend(query, key, value, segments, layer), None
    from penchant.models import attention_gpu

    return getattr(attention_gpu, segments.kernel)(query, key, value, segments, layer), None


def layer_reach(*, local_size: int | None = None, config: Any = None, **_: Any) -> Reach | None:
    """Transformers' mask function of a layer's kind: no mask, only how far the kind sees.

    `local_size` is the window of a kind of layer that has one, and the chunk of one that has those.
    """
    if local_size is None:
        return None
    if local_size == getattr(config, "attention_chunk_size", None) and local_size != getattr(
        config, "sliding_window", None
    ):
        return Reach(chunk=local_size)
    return Reach(window=local_size)


def register() -> None:
    """Tell transformers about the packed attention; safe to call more than once."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, layer_reach)


def layer_kinds(config: Any) -> list[str]:
    """The kind of each layer, as a text model's configuration names it.

    Where it names none, all layers are alike: with a window, or full attention.
    """
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds:
        return list(kinds)
    windowed = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    kind = "sliding_attention" if windowed else "full_attention"
    return [kind] * config.num_hidden_layers


def reaches(config: Any) -> list[Reach]:
    """How far layers see that do not see everything, by a text model's configuration."""
    kinds = layer_kinds(config)
    found = []
    if "sliding_attention" in kinds and (window := getattr(config, "sliding_window", None)):
        found.append(Reach(window=window))
    if "chunked_attention" in kinds and (chunk := getattr(config, "attention_chunk_size", None)):
        found.append(Reach(chunk=chunk))
    return found
