"""Reading prompts into a key-value cache, those of like length together: little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from penchant.core.machine import to_device
from penchant.rl.sampling.cache import is_plain

if TYPE_CHECKING:
    from torch import Tensor

# A prompt is read with longer ones as long as this share of its row is its own.
FILLED = 0.75


@dataclass(frozen=True)
class Read:
    """Prompts that were read, padded on the left: answers continue on the right.

    Attributes:
        cache: of transformers, one row a prompt.
        mask: `[prompts, width]`, 1 where a token stands.
        logits: `[prompts, V]`, of each prompt's next token.
    """

    cache: Any
    mask: Tensor
    logits: Tensor


def read_prompts(model: Any, prompts: Sequence[list[int]], pad_token_id: int) -> Read:
    """Run a model over prompts that are ordered by length.

    Args:
        model: of transformers, in evaluation mode, in its own attention.
        prompts: token ids, the shortest first.
        pad_token_id: any token.
    """
    parts = [_read(model, some, pad_token_id) for some in _alike(prompts)]
    if len(parts) > 1 and not all(is_plain(part.cache) for part in parts):
        return _read(model, prompts, pad_token_id)
    return parts[0] if len(parts) == 1 else _joined(parts)


def padded_left(
    prompts: Sequence[list[int]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, `[prompts, width]` each: answers continue on the right."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    ids, mask = to_device([ids, mask], device)
    return ids, mask


def _alike(prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    start = 0
    for end in range(1, len(prompts) + 1):
        if end == len(prompts) or len(prompts[start]) < FILLED * len(prompts[end]):
            yield list(prompts[start:end])
            start = end


def _read(model: Any, prompts: Sequence[list[int]], pad_token_id: int) -> Read:
    ids, mask = padded_left(prompts, pad_token_id, model.device)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    return Read(out.past_key_values, mask, out.logits[:, -1])


def _joined(parts: Sequence[Read]) -> Read:
    width = max(part.mask.shape[1] for part in parts)
    missing = [width - part.mask.shape[1] for part in parts]
    cache = DynamicCache()
    for number in range(len(parts[0].cache.layers)):
        layers = [part.cache.layers[number] for part in parts]
        keys, values = (
            torch.cat([pad(state, (0, 0, n, 0)) for state, n in zip(states, missing, strict=True)])
            for states in ([one.keys for one in layers], [one.values for one in layers])
        )
        cache.update(keys, values, number)
    masks = [pad(part.mask, (n, 0)) for part, n in zip(parts, missing, strict=True)]
    return Read(cache, torch.cat(masks), torch.cat([part.logits for part in parts]))
